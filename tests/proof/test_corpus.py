"""Models as people write them are proved under the conditions that their authors would state."""

import random
import warnings
from collections.abc import Iterator

import pytest

from tests.corpus.catalogue import MODELS, Model
from tests.corpus.concrete import draw_sizes, failure

# Sizes at which torch broadcasts one position over a whole sequence, or attends over no keys, and says nothing.
GOES_ON = {"gpt_loss", "masked_language_loss", "rotary_scores", "grouped_query_attention", "residual_projection"}
DRAWS = 12  # the slow test takes 100
# Their proofs take seconds, so they are slow tests: of each kind of model a shorter one stays with the others.
LONG = {
    *("masked_language_loss", "downsampling_block", "wavenet_loss", "any_size_cnn_loss", "unet_loss", "gpt_loss"),
    *("same_convolution", "translator_loss", "pairwise_attention", "rotary_scores", "diffusion_loss"),
    *("grouped_query_attention", "cross_attention", "classifier_loss", "rotary_interleaved", "matched_filter"),
    *("squeeze_excite", "per_example_gradient_norms", "edge_convolution", "patch_embedding", "window_attention"),
    *("alibi_attention", "smoothness_loss", "feature_pyramid", "mixture_of_experts_loss", "maximum_mean_discrepancy"),
    *("linear_attention", "style_loss", "sinkhorn_distance", "state_space_scan", "spatial_transformer"),
    *("convnext_block", "output_loss", "residual_block", "inverted_residual", "dense_graph_loss", "mixer_loss"),
    *("adapted_gradient", "prompt_tuning_loss", "attention_block", "ranking_loss"),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """torch warns of what some models are meant to do: the deviation of a single row, broadcasting in a loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def alternatives(conditions: tuple[str, ...]) -> set[frozenset[str]]:
    """Conditions, each as the set of the alternatives it offers."""
    return {frozenset(condition.split(" or ")) for condition in conditions}


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=[pytest.mark.slow] if model.name in LONG else []) for model in MODELS],
    ids=lambda model: model.name,
)
def test_a_model_is_proved_under_the_conditions_that_its_author_would_state(model: Model):
    proved, stated = alternatives(model.prove().conditions), alternatives(model.conditions)
    if model.name in GOES_ON:  # what torch broadcasts in silence may be one more alternative
        proved = {next((meant for meant in stated if meant <= found), found) for found in proved}

    assert proved == stated


def check_draws(model: Model, draws: int) -> None:
    generator = random.Random(0)
    for _ in range(draws):
        sizes = draw_sizes(model, generator)
        why = failure(model, sizes)
        if sizes.satisfy(model):
            assert not why, f"{sizes}: {why}"
        elif model.name not in GOES_ON:
            assert why, f"{sizes} breaks a condition and runs"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_sizes_that_satisfy_the_conditions_run_with_the_declared_result_and_others_fail(model: Model):
    check_draws(model, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_100_random_sizes_run_if_they_satisfy_the_conditions_and_fail_if_not(model: Model):
    check_draws(model, 100)
