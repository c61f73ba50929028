"""Models as people write them, each with the side conditions that a careful reader would state.

The conditions were written down before the prover saw the models. They are the weakest ones under which the program
runs and returns what it declares, for sizes of at least 1, except that a size which broadcasts by accident (one
position over a whole sequence) counts as a failure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from torch import nn

from shaped import Proof, ScalarTrainer, prove
from tests.corpus import attention, classical, generative, graphs, modules, recurrent, structure, vision


@dataclass(frozen=True)
class Model:
    """An annotated function, what it needs of its sizes, and how it is proved.

    Attributes:
        function: The model. Each plain argument has a default, which the proof uses.
        conditions: The side conditions, in the prover's spelling.
        static: Sizes of the names that the program loops over.
        assume: Relations that its author would state.
        module: For a loss over an nn.Module: what makes one.
    """

    function: Callable[..., Any]
    conditions: tuple[str, ...] = ()
    static: Mapping[str, int] = field(default_factory=dict)
    assume: tuple[str, ...] = ()
    module: Callable[[], nn.Module] | None = None

    @property
    def name(self) -> str:
        return self.function.__name__

    def prove(self) -> Proof:
        if self.module is not None:
            return ScalarTrainer(self.function, self.module(), assume=self.assume, static=self.static).proof
        return prove(self.function, assume=self.assume, static=self.static)


CLASSICAL = [
    Model(classical.mlp_loss),
    Model(classical.regression_loss),
    Model(classical.logistic_loss),
    Model(classical.newton_step),
    Model(classical.gaussian_process_loss),
    Model(classical.maximum_mean_discrepancy),
    Model(classical.ridge_regression),
    Model(classical.principal_scores, ("rows >= 2", "features >= 2")),
    Model(classical.heat_equation_loss),
    Model(classical.per_example_gradient_norms),
    Model(classical.kalman_step),
    Model(classical.sinkhorn_distance),
    Model(classical.cox_loss),
    Model(classical.pinball_loss),
    Model(classical.pairwise_ranking_loss),
    Model(classical.energy_score),
    Model(classical.gini_coefficient),
    Model(classical.gaussian_mixture_loss),
    Model(classical.ranking_loss),
    Model(classical.bag_of_words_loss),
]
VISION = [
    Model(vision.lenet_loss),
    Model(vision.any_size_cnn_loss, ("height >= 4", "width >= 4")),
    Model(vision.residual_block, ("batch >= 2 or height >= 2 or width >= 2",)),
    Model(vision.downsampling_block, ("batch >= 2 or height >= 3 or width >= 3",)),
    Model(vision.same_convolution, ("k % 2 == 1",)),
    Model(vision.inverted_residual),
    Model(vision.convnext_block),
    Model(vision.squeeze_excite, ("c % 8 == 0", "batch >= 2 or height >= 2 or width >= 2 or c//8 >= 2")),
    Model(vision.super_resolution_loss),
    Model(vision.vit_loss, ("dim % 4 == 0",)),
    Model(vision.patch_embedding, ("height % 4 == 0", "width % 4 == 0")),
    Model(vision.unet_loss, ("height % 2 == 0", "width % 2 == 0")),
    Model(vision.feature_pyramid),
    Model(vision.window_attention, ("height % 4 == 0", "width % 4 == 0", "dim % heads == 0")),
    Model(vision.box_iou),
    Model(vision.dice_loss),
    Model(vision.style_loss),
    Model(vision.smoothness_loss),
    Model(vision.spatial_transformer),
]
ATTENTION = [
    Model(attention.gpt_loss, ("dim % 4 == 0", "seq <= context")),
    Model(attention.attention_block, ("dim % 8 == 0",)),
    Model(attention.cross_attention),
    Model(attention.rotary_scores, ("depth % 2 == 0",)),
    Model(attention.rotary_interleaved, ("depth % 2 == 0",)),
    Model(attention.alibi_attention),
    Model(attention.grouped_query_attention, ("heads % groups == 0",)),
    Model(attention.sliding_window_attention),
    Model(attention.relative_position_bias),
    Model(attention.linear_attention),
    Model(attention.mixture_of_experts_loss, ("experts >= 2",)),
    Model(attention.routed_experts, ("experts >= 2",)),
    Model(attention.lora_loss),
    Model(attention.perceiver_read),
    Model(attention.packed_attention),
    Model(attention.cached_attention),
    Model(attention.masked_mean_pooling),
    Model(attention.prompt_tuning_loss),
    Model(attention.preference_loss),
]
RECURRENT = [
    Model(recurrent.gru_loss, static={"time": 3}),
    Model(recurrent.lstm_language_loss, static={"time": 4}),
    Model(recurrent.wavenet_loss),
    Model(recurrent.forecast_loss),
    Model(recurrent.matched_filter, ("time >= k",)),
    Model(recurrent.long_convolution),
    Model(recurrent.state_space_scan),
    Model(recurrent.selective_scan),
    Model(recurrent.minimal_gru),
    Model(recurrent.channel_mixing),
    Model(recurrent.crf_loss, static={"time": 4}),
    Model(recurrent.additive_attention),
    Model(recurrent.policy_gradient_loss),
    Model(recurrent.q_learning_loss),
]
GRAPHS = [
    Model(graphs.gcn_loss),
    Model(graphs.sage_layer),
    Model(graphs.graph_attention),
    Model(graphs.dense_graph_attention),
    Model(graphs.dense_graph_loss),
    Model(graphs.graph_readout),
    Model(graphs.pointnet_loss),
    Model(graphs.edge_convolution, ("points >= 4",)),
    Model(graphs.equivariant_layer),
    Model(graphs.translation_loss),
    Model(graphs.deep_set),
]
GENERATIVE = [
    Model(generative.vae_loss),
    Model(generative.diffusion_loss, ("dim % 2 == 0",)),
    Model(generative.flow_matching_loss),
    Model(generative.coupling_flow_loss),
    Model(generative.vector_quantised_loss),
    Model(generative.gradient_penalty_loss),
    Model(generative.generator_loss),
    Model(generative.sliced_score_matching_loss, static={"batch": 4, "dim": 3, "hidden": 5}),
    Model(generative.mixture_density_loss),
    Model(generative.clip_loss),
    Model(generative.nt_xent_loss),
    Model(generative.barlow_twins_loss),
    Model(generative.triplet_loss),
    Model(generative.supervised_contrastive_loss),
]
STRUCTURE = [
    Model(structure.nested_loss),
    Model(structure.linear),
    Model(structure.residual_projection, ("outer == inner",), assume=("outer == inner",)),
    Model(structure.rms_norm),
    Model(structure.feed_forward),
    Model(structure.pairwise_attention),
    Model(structure.masked_loss),
    Model(structure.masked_language_loss, ("seq <= context",)),
    Model(structure.lstm_cell),
    Model(structure.graph_network),
    Model(structure.losses_as_a_dictionary),
    Model(structure.siamese_loss),
    Model(structure.checkpointed_loss),
    Model(structure.ensemble_loss),
    Model(structure.adapted_gradient),
    Model(structure.autocast_loss),
    Model(structure.mixed_precision),
    Model(structure.anonymous_loss),
    Model(structure.multitask_loss),
]
MODULES = [
    Model(modules.classifier_loss, ("height >= 2", "width >= 2"), module=modules.Classifier),
    Model(modules.output_loss, ("height >= 2", "width >= 2"), module=modules.Classifier),
    Model(modules.normalised_loss, ("batch >= 2",), module=modules.Normalised),
    Model(modules.translator_loss, module=modules.Translator),
    Model(modules.tagger_loss, static={"time": 4}, module=modules.Tagger),
    Model(modules.functional_head),
]
MODELS = [*CLASSICAL, *VISION, *ATTENTION, *RECURRENT, *GRAPHS, *GENERATIVE, *STRUCTURE, *MODULES]

if find_spec("einops"):
    from tests.corpus import rearranged

    MODELS += [
        Model(rearranged.einops_attention, ("dim % 4 == 0",)),
        Model(rearranged.mixer_loss),
        Model(rearranged.einops_pooling, ("height % 2 == 0", "width % 2 == 0")),
        Model(rearranged.einops_fusion),
    ]
