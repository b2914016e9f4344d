"""Several runs by one command: a seed after another, every combination of some options, and a table of how they did."""

import itertools
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_type_hints

from nanoft import config, files
from nanoft.tasks import ensemble


def variations(cfg):
    """The runs that --seeds and --grid ask for, each a config with its own out_dir. Raises ValueError."""
    settings, kinds = [], get_type_hints(type(cfg))
    for part in filter(None, cfg.grid.split(";")):
        name, equals, values = part.strip().partition("=")
        if name == "seed":
            raise ValueError(f"grid: {part!r}: several seeds are --seeds={values}")
        if not equals or name not in kinds or name in ("out_dir", "seeds", "grid", "resume"):
            raise ValueError(f"grid: {part!r} is not an option and its values, as in lr=1e-4,3e-4")
        settings.append([(name, parsed("grid: " + name, value, kinds[name])) for value in values.split(",")])
    seeds = [parsed("seeds", seed, int) for seed in cfg.seeds.split(",")] if cfg.seeds else [cfg.seed]
    runs = []
    for chosen in itertools.product(*settings):
        for seed in seeds:
            folder = [f"{name}={value}" for name, value in chosen] + ([f"seed{seed}"] if cfg.seeds else [])
            runs.append(replace(cfg, **dict(chosen), seed=seed, seeds="", grid="",
                                out_dir=str(Path(cfg.out_dir, "_".join(folder).replace("/", "-")))))
    names = [values[0][0] for values in settings]
    if len({run.out_dir for run in runs}) < len(runs) or len(set(names)) < len(names):
        raise ValueError(f"seeds={cfg.seeds} grid={cfg.grid}: something stands there twice; name each once")
    return runs


def finished(run):
    """Has this very run, with the same options, come to its end before?"""
    out_dir = Path(run.out_dir)
    if not (out_dir / "result.json").exists():
        return False
    before = files.read_json(out_dir / "config.json")
    return all(before.get(name) == value for name, value in asdict(run).items() if name != "resume")


def parsed(name, text, kind):
    try:
        return config.parse_text(text.strip(), kind)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def compare(cfg, runs, results):
    """Print a table, a line for each combination of --grid: mean and deviation over the seeds; write it down.

    Where rows have one label each, also what the seeds' runs say together (ensemble.py) of the last split.
    """
    names = [part.strip().partition("=")[0] for part in filter(None, cfg.grid.split(";"))]
    metric, table = results[0]["metric"], {}
    for run, result in zip(runs, results):
        table.setdefault(tuple((name, getattr(run, name)) for name in names), []).append((run, result))
    splits = [split for split in ("val", "test") if f"{split}_{metric}" in results[0]]
    one_label = all(result.get("kind") in ("classify", "pair") and f"{splits[-1]}_confusion" in result
                    for result in results)  # results of an older nanoft name no kind
    columns = [f"{split}_{metric}" for split in splits]
    together = f"{columns[-1]}_together" if one_label and len(next(iter(table.values()))) > 1 else ""
    lines = [("", *(name.replace("_", " ") for name in [*columns, "deviation_of_each", *filter(None, [together])]))]
    entries = []
    for chosen, some in table.items():
        entry = {"options": dict(chosen), "seeds": [run.seed for run, _ in some]}
        for column in columns:
            values = [result[column] for _, result in some]
            entry[column] = {"values": values, "mean": statistics.fmean(values),
                             "deviation": statistics.stdev(values) if len(values) > 1 else 0.0}
        line = [" ".join(f"{k}={v}" for k, v in chosen) or f"{len(some)} seeds",
                *(f"{entry[column]['mean']:.4f}" for column in columns),
                " ".join(f"{entry[column]['deviation']:.4f}" for column in columns)]
        if together:
            entry[together] = ensemble.average([run.out_dir for run, _ in some])[0][metric]
            line.append(f"{entry[together]:.4f}")
        entries.append(entry)
        lines.append(tuple(line))
    print(f"\n--- {len(runs)} runs ---\n{files.aligned(lines)}")
    files.write_json(Path(cfg.out_dir) / ("grid.json" if cfg.grid else "result.json"), entries)
