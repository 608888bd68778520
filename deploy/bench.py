"""`tessera bench`: a grid of methods and seeds from YAML, resumable, hyperparameters chosen on validation, one table.

name: ml-latest-small-table2
base: {data: ..., rounds: 60}             settings that all methods share
methods:
  history-views:
    local: {backbone: history}            laid over the base
    choose: {local.learning_rate: [0.001, 0.01]}     tried with the first seed; the best on validation is kept
seeds: [0, 1, 2]
quick: {rounds: 5}                        laid over everything by --quick
"""

import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from common.catalogue import write_table
from common.config import nested, overlaid, parse_settings, read_yaml
from common.errors import ConfigError, DataError
from common.files import read_json, write_bytes, write_json
from deploy.prepared import prepared_dataset
from deploy.train import make_job, train

Content = dict[str, Any]
KEYS = {"name", "base", "methods", "seeds", "quick"}
RESULT = "result.json"
TRAFFIC = ("bytes_down_per_node", "bytes_up_per_node", "bytes_down_per_user", "bytes_up_per_user")


@dataclass(frozen=True)
class Bench:
    """What to run: settings by method, before seeds, and what each method may choose among."""

    name: str
    methods: Mapping[str, Content]
    choices: Mapping[str, Mapping[str, list[Any]]]
    seeds: tuple[int, ...]

    @classmethod
    def load(cls, path: Path, quick: bool = False) -> "Bench":
        """Read a bench. Raises `ConfigError` that names the file and what is wrong; every method is validated first."""
        content = read_yaml(path)
        if unknown := content.keys() - KEYS:
            raise ConfigError(f"{path}: unknown key {min(unknown)!r}; known are {', '.join(sorted(KEYS))}")
        for key, kind in (("name", str), ("methods", dict), ("seeds", list)):
            if not isinstance(content.get(key), kind) or not content[key]:
                raise ConfigError(f"{path}: {key!r} is missing or no {kind.__name__}")
        methods, choices = {}, {}
        for name, own in content["methods"].items():
            own = dict(own or {})
            choices[name] = own.pop("choose", {})
            merged = overlaid(overlaid(content.get("base", {}), own), content.get("quick", {}) if quick else {})
            methods[name] = merged | {"name": str(name)}
            parse_settings(methods[name], f"{path}: methods.{name}")
        return cls(content["name"] + ("-quick" if quick else ""), methods, choices, tuple(content["seeds"]))

    def candidates(self, method: str) -> Iterator[dict[str, Any]]:
        """Every combination of what a method may choose among; one empty one where there is no choice."""
        names, values = list(self.choices[method]), list(self.choices[method].values())
        return (dict(zip(names, combination, strict=True)) for combination in itertools.product(*values))


def run_bench(bench: Bench, data: Path | None, runs: Path, tell: Callable[[str], None]) -> pl.DataFrame:
    """Run what has no result yet below `runs`, and return a row a method and seed, as `results.parquet` has them.

    A killed one goes on where it was: a finished run of the same settings is not repeated.
    """
    folder = runs / bench.name
    rows = []
    for method, content in bench.methods.items():
        chosen, tried = _choose(bench, method, content, data, folder, tell)
        for seed in bench.seeds:
            result = _run(content, chosen, seed, data, folder, tell)
            rows.append({"method": method, "seed": seed, **_figures(result), "chosen": json.dumps(chosen)})
        write_json(folder / method / "tried.json", {"tried": tried, "chosen": chosen})
    rows += [{"method": name, "seed": 0, **scores} for name, scores in _baselines(result).items()]
    table = pl.DataFrame(rows, infer_schema_length=None)
    write_table(folder / "results.parquet", table)
    write_bytes(folder / "results.md", markdown(table).encode())
    return table


def _choose(
    bench: Bench, method: str, content: Content, data: Path | None, folder: Path, tell: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Try a method's candidates with the first seed; keep the best NDCG on validation. Test is not looked at."""
    candidates = list(bench.candidates(method))
    if len(candidates) == 1:
        return candidates[0], []
    tried = []
    for candidate in candidates:
        scores = _run(content, candidate, bench.seeds[0], data, folder, tell)["scores"]
        tried.append({**candidate, "validation": _best_cut(scores, "validation", "ndcg")})
    best = max(range(len(tried)), key=lambda index: tried[index]["validation"])
    return candidates[best], tried


def _run(
    content: Content, chosen: dict[str, Any], seed: int, data: Path | None, folder: Path, tell: Callable[[str], None]
) -> Content:
    """Run one method with one choice and seed, or read the result it left."""
    for key, value in {**chosen, "seed": seed}.items():
        content = overlaid(content, nested(key, value))
    settings = parse_settings(content, content["name"])
    label = "-".join([f"seed{seed}", *(f"{key.split('.')[-1]}={value}" for key, value in chosen.items())])
    run_dir = folder / settings.name / label
    wanted = settings.model_dump(mode="json")
    if (run_dir / RESULT).is_file() and (found := read_json(run_dir / RESULT))["settings"] == wanted:
        return found
    tell(f"{settings.name} {label}")
    job = make_job(settings, prepared_dataset(settings.data, data), run_dir, resume=False, overwrite=True)
    result = train(job, "inline", lambda line: None) | {"settings": wanted}
    result["private_parameters"] = _private_parameters(job.devices[0], run_dir)
    write_json(run_dir / RESULT, result)
    return result


def _private_parameters(device: Path, run_dir: Path) -> int:
    """How many private numbers a device keeps for one person, the optimiser's aside."""
    from client.recommend import Personal

    _, private = Personal.open(device).people()[0]
    if not private:
        raise DataError(f"{run_dir}: no private state was written")
    return sum(value[0].numel() for value in private.values())


def _baselines(result: Content) -> dict[str, dict[str, float]]:
    """Scores of each trivial baseline, by name; they are the same in every run on one dataset."""
    found: dict[str, dict[str, float]] = {}
    for name, value in result["baselines"].items():
        row, _, metric = name.partition("/")
        if not metric.endswith("/users"):
            found.setdefault(row, {})[metric] = value
    return found


def _figures(result: Content) -> dict[str, Any]:
    scores = {name: value for name, value in result["scores"].items() if not name.endswith("/users")}
    rest = {name: result[name] for name in ("selected_round", "rounds", "seconds", "private_parameters", *TRAFFIC)}
    return {**scores, **rest, "seconds_per_round": result["seconds"] / result["rounds"]}


def _best_cut(scores: Mapping[str, float], part: str, metric: str) -> float:
    cuts = [int(name.rpartition("@")[2]) for name in scores if name.startswith(f"{part}/all/{metric}@")]
    return scores[f"{part}/all/{metric}@{max(cuts)}"]


def markdown(table: pl.DataFrame) -> str:
    """The grid's table: mean over seeds, and [smallest, largest] where there are several."""
    shown = [
        name for name in table.columns if name.startswith("test/") and name.split("/")[1] in ("all", "warm", "cold")
    ]
    shown += ["private_parameters", *TRAFFIC, "seconds_per_round"]
    lines = ["| method | seeds | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for (method,), rows in table.group_by("method", maintain_order=True):
        cells = [_cell([float(value) for value in rows[name] if value is not None]) for name in shown]
        lines.append(f"| {method} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"
