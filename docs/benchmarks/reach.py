"""How many of the annotated functions and methods of some packages, written by others, `shaped check` decides.

    python docs/benchmarks/reach.py --packages FOLDER [--only FILES] [--seconds 60] [--json ROWS [--go-on new]]

`pip install --no-deps --target FOLDER nerfstudio==1.1.5 transformer-lens==4.3.0` puts the packages there, and
`sparse-autoencoder==1.10.0 sae-lens==6.0.0 transformer-lens==2.16.1 strenum==0.5.0` two more into another folder
(`--only /sae_lens/` and the like takes one of a folder; tests within a package are left out). What they
import and is not installed is hollow: modules whose every name is a class that does nothing. Each file is checked in a
process of its own, which has 4 GB, and each function has a limit of time: as the file is, and where that leaves it open
once more with what no annotation tells. That is said in `FACTORIES`, as the users of a package would say it in
`[tool.shaped]` of their project; what is decided by means of it is counted apart. A function counts if its annotations
name a shape; one whose body is `raise NotImplementedError` is `declared`, and nothing is asked of it.
"""

import argparse
import ast
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded, and nobody waits for it
PACKAGES = {
    "nerfstudio": "nerfstudio",
    "transformer_lens": "transformer-lens",
    "sparse_autoencoder": "sparse-autoencoder",
    "sae_lens": "sae-lens",
}
_NATIVE = "transformer_lens.model_bridge.sources.native.boot"
_SIZES = "'d_model': (d_model := 12), 'n_layers': 3, 'n_heads': 3, 'd_head': 4, 'n_ctx': 32, 'd_vocab': (d_vocab := 20)"
_TOKENS = "torch.zeros((batch := 2), (pos := 3), dtype=torch.int64)"
_DIFFUSION = (
    "device='cpu'",
    "min_step=20",
    "max_step=980",
    "alphas=torch.linspace(0.99, 0.01, 1000)",
    "scheduler=types.SimpleNamespace(add_noise=lambda x, noise, t: x + noise, set_timesteps=lambda n: None, "
    "timesteps=torch.arange(3), step=lambda noise, t, x: {'prev_sample': x - noise})",
)
_RAYS = "*torch.zeros(2, 4, 3, 3), *torch.ones(3, 4, 3, 1)"
_SDF = "nerfstudio.fields.sdf_field.SDFField"
_STANDINS = (
    "viewmatrix.lookat=torch.ones(3)",
    "viewmatrix.up=torch.tensor([0.0, 1.0, 0.0])",
    "viewmatrix.pos=torch.zeros(3)",
    "PixelSampler.rejection_sample_mask.mask=torch.ones((num_images := 2), (image_height := 4), (image_width := 6), 1)",
    "PixelSampler.rejection_sample_mask.device='cpu'",
    "Field.get_density=lambda samples: (samples.frustums.get_positions()[..., :1], None)",
    "RaySamples=nerfstudio.cameras.rays.RaySamples("
    f"nerfstudio.cameras.rays.Frustums({_RAYS}), deltas=torch.ones(4, 3, 1))",
    f"SDFField=type('Made', ({_SDF},), {{'encoding': type('HashGrid', (), {{'n_output_dims': 32}}), "
    f"'_cos_anneal_ratio': 1.0}})({_SDF}Config(encoding_type='periodic', "
    "geo_feat_dim=(geo_feat_dim := (geo_features := 256))), torch.zeros(2, 3), 2)",
    "SDFField.get_colors.camera_indices=torch.zeros(batch1, dtype=torch.int64)",
    "Cameras._generate_rays_from_coords.camera_indices=torch.zeros(num_rays, 1, dtype=torch.int64)",
    "Cameras._generate_rays_from_coords.coords=torch.ones(num_rays, 2)",
    "Cameras._generate_rays_from_coords.camera_opt_to_camera=None",
    "Cameras._generate_rays_from_coords.distortion_params_delta=None",
    "Cameras=nerfstudio.cameras.cameras.Cameras(torch.zeros((num_cameras := 3), 3, 4), 9.0, 9.0, 4.0, 4.0, 8, 8)",
)
_SIDES = ("base", "top", "side", "back", "front")
_ONE = _SIZES.replace("'n_layers': 3", "'n_layers': 1")
_SMALL = tuple(
    f"{name}={_NATIVE}({{{_ONE}, 'd_mlp': 24, 'act_fn': 'gelu'}}).eval(){more}"
    for name, more in (("model", ""), ("clean_cache", f".run_with_cache({_TOKENS})[1]"))
)
_EVERY = ("attn_head_all_pos", "attn_head_by_pos", "block")
_TRAINED = (
    "sae_lens.saes.standard_sae.StandardTrainingSAE(sae_lens.saes.standard_sae.StandardTrainingSAEConfig(d_in, d_sae))"
)
FACTORIES = {
    "nerfstudio": (
        *_STANDINS,
        "PixelSamplerConfig=nerfstudio.data.pixel_samplers.PixelSamplerConfig(fisheye_crop_radius=2.0)",
        "cameras=nerfstudio.cameras.cameras.Cameras(torch.zeros((num_cameras := 3), 3, 4), 9.0, 9.0, 4.0, 4.0, 8, 8)",
        "init_val=0.3",
        "color='red'",
        "name='image'",
        "InputDataset.get_numpy_image=lambda index: numpy.zeros((4, 6, 3), dtype='uint8')",
        "InputDataset._dataparser_outputs=types.SimpleNamespace(alpha_color=None)",
        "log_dir=pathlib.Path('logs')",
        "experiment_name='run'",
        "evaluate_sdf.sdf=lambda points: points.norm(dim=-1)",
        "evaluate_multiresolution_sdf.evaluate_sdf=lambda points: points.norm(dim=-1)",
        "generate_mesh_with_multires_marching_cubes.geometry_callable_field=lambda points: points.norm(dim=-1)",
        "TensorboardWriter.tb_writer=types.SimpleNamespace(add_image=lambda *given, **named: None)",
        *(f"{name}.{text}" for name in ("StableDiffusion", "DeepFloyd") for text in _DIFFUSION),
        "StableDiffusion.auto_encoder=types.SimpleNamespace("
        "encode=lambda x: types.SimpleNamespace(latent_dist=torch.distributions.Normal("
        "x.new_zeros(len(x), 4, x.shape[2] // 8, x.shape[3] // 8), 1.0, validate_args=False)), "
        "decode=lambda x: types.SimpleNamespace(sample=x.new_zeros(len(x), 3, 8 * x.shape[2], 8 * x.shape[3])))",
        "StableDiffusion.unet=type('UNet', (), {'config': types.SimpleNamespace(in_channels=4), '__call__': "
        "lambda self, x, t, encoder_hidden_states: types.SimpleNamespace(sample=x.clone())})()",
        "DeepFloyd.unet=lambda x, t, encoder_hidden_states: types.SimpleNamespace(sample=torch.cat([x, x], 1))",
        "StableDiffusion.tokenizer=type('Tokenizer', (), {'model_max_length': 77, '__call__': "
        "lambda self, text, **named: types.SimpleNamespace(input_ids=torch.zeros(1, 77, dtype=torch.int64))})()",
        "StableDiffusion.text_encoder=lambda ids: (torch.zeros(len(ids), ids.shape[1], 16),)",
        "VolumetricSampler.occupancy_grid=types.SimpleNamespace(sampling=lambda **named: "
        "(torch.zeros(5, dtype=torch.int64), torch.zeros(5), torch.ones(5)))",
        "prompt='a chair'",
        "negative_prompt=''",
        *(f"PositionalTextEmbeddings.{side}_embed=torch.zeros(2, length, width)" for side in _SIDES),
        "PositionalTextEmbeddings.positional_prompting='discrete'",
    ),
    "transformer_lens": (
        f"model={_NATIVE}({{{_SIZES}, 'd_mlp': 24, 'act_fn': 'gelu'}}).eval()",
        f"clean_cache=model.run_with_cache({_TOKENS})[1]",
        "corrupted_cache=clean_cache",
        "ActivationCache=clean_cache",
        *(f"{name}={_TOKENS}" for name in ("corrupted_tokens", "base_inputs", "source_inputs", "inputs")),
        "metric=lambda logits: logits.mean()",
        "patching_metric=lambda logits: logits.mean()",
        "task_logits=lambda inputs: model(inputs)[:, -1]",
        "intervention=lambda base, source: source",
        "hook_name='blocks.0.hook_out'",
        "activation_name='mlp_out'",
        "index_axis_names=('layer', 'pos')",
        "patch_setter=transformer_lens.patching.layer_pos_patch_setter",
        "JacobianLens=JacobianLens({i: torch.zeros(12, 12) for i in range(2)}, n_prompts=1, d_model=(d_model := 12))",
        "LearnedSubspace=transformer_lens.tools.analysis.interchange.LearnedSubspace((d_model := 12), (rank := 3))",
        "source_layers=[0]",
        "fit_das.rank=3",
        "fit_das.epochs=1",
        "JacobianLens.readout.input=torch.zeros(1, (seq := 3), dtype=torch.int64)",
        "JacobianLens.lens_vector_dictionary.layer=0",
        "JacobianLens.lens_vectors.layer=0",
        "_make_intervention_hook.hook_fn.hook=types.SimpleNamespace(name='blocks.0.hook_out')",
        "sweep_sparse_probe.ks=(1, 2)",
        *(f"get_act_patch_{name}_every.{text}" for name in _EVERY for text in _SMALL),
        "_make_intervention_hook.transform=lambda selected, positions: selected",
        "_jacobian_for_prompt.tokens=torch.zeros(1, 4, dtype=torch.int64)",
        "_jacobian_for_prompt.dim_batch=2",
        "_jacobian_for_prompt.skip_first_positions=1",
        "_jacobian_for_prompt.backward_provider=transformer_lens.tools.analysis.jacobian_lens._ordinary_vjp",
        "_jacobian_for_prompt.capture_fn.hook=types.SimpleNamespace(name='blocks.0.hook_out')",
        "ln_final=torch.nn.LayerNorm(d_model)",
    ),
    "sae_lens": (
        "SAE=sae_lens.saes.standard_sae.StandardSAE(sae_lens.saes.standard_sae.StandardSAEConfig(d_in, d_sae))",
        *(f"{name}={_TRAINED}" for name in ("TrainingSAE", "StandardTrainingSAE")),
    ),
    "sparse_autoencoder": ("LossReducer=sparse_autoencoder.LossReducer(sparse_autoencoder.L2ReconstructionLoss())",),
}
# What torch called otherwise when sparse-autoencoder was new, and now.
_RENAMED = (("torch.serialization", "FILE_LIKE", "FileLike"), ("torch.optim.optimizer", "params_t", "ParamsT"))
_MEMORY = 4 * 2**30
_SHAPES = {
    "Float",
    "Int",
    "Bool",
    "Shaped",
    "Num",
    "UInt8",
    "Integer",
    "Complex",
    "Float32",
    "Float16",
    "Int64",
    "Real",
}
_OURS = (*PACKAGES, "torch", "numpy", "shaped", "jaxtyping", "strenum")


class _Nothing(type):
    """A class of a hollow module: it has every attribute, and calling it gives an instance."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing(name)

    def __or__(cls, other: Any) -> Any:
        return cls

    def __ror__(cls, other: Any) -> Any:
        return other


_LOOKS = tuple(f"__{name}__" for name in ("getitem", "iter", "len", "float", "int", "index", "add", "mul", "sub"))


def _nothing(name: str) -> Any:
    def same(self: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else _nothing(name)

    def no_name(self: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing(name)

    from shaped.check.unknown import undecided

    def looked_into(self: Any, *args: Any) -> Any:
        raise undecided(f"`{name}` is of a package that is not installed, and is looked into here.")

    kind: _Nothing
    body = {
        **dict.fromkeys(_LOOKS, looked_into),
        "__module__": "hollow",
        "__call__": same,
        "__getattr__": no_name,
        "__class_getitem__": lambda cls, item: kind,
    }
    kind = _Nothing(name, (), {**body, "__init__": lambda self, *args, **kwargs: None})
    return kind


class _Hollow(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _nothing(name)
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last to be asked: what nobody has is hollow."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        caller = sys._getframe(1)
        while caller is not None and "importlib" in caller.f_code.co_filename:
            caller = caller.f_back  # type: ignore[assignment]
        asked = str(caller.f_globals.get("__name__", "")) if caller is not None else ""
        hollow = isinstance(sys.modules.get(name.partition(".")[0]), _Hollow)
        if caller is not None and caller.f_lineno in _tried(caller.f_code.co_filename):
            return None  # the package says itself what it does without
        absent = name.partition(".")[0] in PACKAGES and name.partition(".")[0] not in sys.modules
        if (name.partition(".")[0] in _OURS and not absent) or not (asked.startswith(tuple(PACKAGES)) or hollow):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        module = _Hollow(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


@cache
def _tried(file: str) -> frozenset[int]:
    """Lines of imports whose failure a file expects."""
    try:
        tree = ast.parse(Path(file).read_text())
    except (OSError, SyntaxError):
        return frozenset()
    bodies = [part for node in ast.walk(tree) if isinstance(node, ast.Try) and node.handlers for part in node.body]
    inside = [inner for part in bodies for inner in ast.walk(part)]
    return frozenset(inner.lineno for inner in inside if isinstance(inner, ast.Import | ast.ImportFrom))


def annotated(file: Path) -> Iterator[tuple[str, int]]:
    """Name and line of each function in a file that names a shape in its signature."""

    def walk(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, int]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                hints = [*(a.annotation for a in arguments), node.returns]
                overloads = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
                if any(_names_shape(hint) for hint in hints) and not overloads:
                    yield prefix + node.name, node.lineno
                yield from walk(node.body, f"{prefix}{node.name}.<locals>.")
            elif isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.If | ast.Try | ast.With):
                yield from walk(node.body, prefix)

    yield from walk(ast.parse(file.read_text()).body, "")


def _names_shape(hint: ast.expr | None) -> bool:
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
        hint = ast.parse(hint.value, mode="eval").body
    nodes = ast.walk(hint) if hint is not None else ()
    subscripts = [node.value for node in nodes if isinstance(node, ast.Subscript)]
    return any(getattr(value, "id", getattr(value, "attr", "")) in _SHAPES for value in subscripts)


class _Late(BaseException):
    pass


def _late(*_: Any) -> None:
    raise _Late


def check(packages: Path, file: Path, seconds: int, known: frozenset[str] = frozenset()) -> None:
    """Check a file's functions, and print a line of JSON for each. In a process of its own."""
    sys.path.insert(0, str(packages))
    sys.meta_path.append(_Finder())
    for place, old, new in _RENAMED:
        setattr(importlib.import_module(place), old, getattr(importlib.import_module(place), new))
    from shaped.check.files import import_module
    from shaped.check.targets import is_empty

    names = [(name, line) for name, line in annotated(file) if name not in known]
    relative = file.relative_to(packages)
    try:
        module = import_module(".".join(relative.with_suffix("").parts).removesuffix(".__init__"))
    except BaseException as error:
        for name, line in names:
            _print(file, name, line, "import", f"{type(error).__name__}: {error}", 0.0, "")
        return
    nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    declared = {node.lineno for node in nodes if is_empty(node.body)}
    said = FACTORIES.get(relative.parts[0], ())
    ways = (("", ()), ("factories", said)) if said else (("", ()),)
    signal.signal(signal.SIGPROF, _late)  # of processor time, whatever else runs
    for name, line in names:
        start, how = time.perf_counter(), ""
        status, summary = "declared", "for others to define"
        if line not in declared:
            for way, factories in ways:
                signal.setitimer(signal.ITIMER_PROF, seconds)
                try:
                    (status, summary), how = _verdict(module, file, name, factories), way
                except _Late:
                    status, summary = "late", f"more than {seconds} s"
                except Exception as error:
                    status, summary = "error", f"{type(error).__name__}: {error}"
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                if status in ("proved", "refuted"):
                    break
        _print(file, name, line, status, summary, time.perf_counter() - start, how)


def _verdict(module: ModuleType, file: Path, name: str, factories: Sequence[str]) -> tuple[str, str]:
    """Status and message."""
    from shaped.check import check_file

    verdict = next(v for v in check_file(module, file, name, (), {}, factories, auto=True) if v.function == name)
    return verdict.status, verdict.message


def _print(file: Path, name: str, line: int, status: str, summary: str, seconds: float, how: str) -> None:
    row = {"file": str(file), "name": name, "line": line, "status": status, "summary": summary, "seconds": seconds}
    row["how"] = how
    print("\n@" + json.dumps(row), flush=True)


def _aside(packages: Path, file: Path, seconds: int, known: frozenset[str]) -> list[dict[str, Any]]:
    """The rows of a file, from a child of this process, which has imported the prover."""
    with tempfile.TemporaryFile("w+") as rows:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.chdir(tempfile.mkdtemp())  # what a program writes
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
            sys.stdout = rows
            try:
                check(packages, file, seconds, known)
                rows.flush()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        rows.seek(0)
        return [json.loads(line[1:]) for line in rows.read().splitlines() if line.startswith("@")]


def _all(packages: Path, file: Path, seconds: int, known: frozenset[str]) -> list[dict[str, Any]]:
    """The rows of a file: where a function ends the process, a new one goes on behind it."""
    found: list[dict[str, Any]] = []
    while True:
        found += _aside(packages, file, seconds, known | {row["name"] for row in found})
        seen = known | {row["name"] for row in found}
        left = [(name, line) for name, line in annotated(file) if name not in seen]
        if not left:
            return found
        lost = {"file": str(file), "status": "crash", "summary": "the process ended", "seconds": 0.0, "how": ""}
        found.append({**lost, "name": left[0][0], "line": left[0][1]})


def measure(
    packages: Path, only: str, seconds: int, written: Path | None, before: Sequence[dict[str, Any]], again: bool
) -> list[dict[str, Any]]:
    """A row for each function of the packages, also written to a file as they come.

    Args:
        before: Rows of an earlier run: what it decided is not asked again.
        again: Ask what it did not decide; otherwise files that it has are left as they are.
    """
    importlib.import_module("shaped.proof.search")  # once, and not in each child
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in before:
        rows.setdefault(row["file"], []).append(row)
    for package in PACKAGES:
        for file in sorted((packages / package).rglob("*.py")):
            names, path = list(annotated(file)), str(file.relative_to(packages))
            if not names or only not in str(file) or "tests" in Path(path).parts or (path in rows and not again):
                continue
            decided = [row for row in rows.get(path, ()) if row["status"] in ("proved", "refuted")]
            known = frozenset(row["name"] for row in decided)
            found = [*decided, *(_all(packages, file, seconds, known) if len(known) < len(names) else ())]
            rows[path] = [{**row, "package": package, "file": path} for row in found]
            if written is not None:
                written.write_text(json.dumps([row for some in rows.values() for row in some], indent=1))
            print(f"{path}: {dict(Counter(row['status'] for row in found))}", file=sys.stderr)
    return [row for some in rows.values() for row in some]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--only", default="", help="files whose path has this in it")
    parser.add_argument("--seconds", type=int, default=60, help="for one function")
    parser.add_argument("--json", type=Path, default=None, help="where to write every row")
    parser.add_argument("--go-on", choices=("new", "undecided"), help="keep what that file has, and ask the others")
    options = parser.parse_args()
    packages = options.packages.resolve()
    before = json.loads(options.json.read_text()) if options.go_on and options.json.is_file() else []
    again = options.go_on != "new"
    rows = measure(packages, options.only, options.seconds, options.json, before, again)
    import torch

    print(
        f"python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores of {platform.machine()}"
    )
    for package in PACKAGES:
        mine = [row for row in rows if row["package"] == package]
        count = Counter(row["status"] for row in mine)
        decided = count["proved"] + count["refuted"]
        rest = ", ".join(f"{n} {status}" for status, n in count.items() if status not in ("proved", "refuted"))
        given = sum(row["status"] in ("proved", "refuted") and row.get("how", "") == "factories" for row in mine)
        kinds = f"{count['proved']} proved, {count['refuted']} refuted; {given} by what factories say"
        print(f"{package}: {len(mine)} annotated, {decided} decided ({kinds}). Not decided: {rest}")


if __name__ == "__main__":
    main()
