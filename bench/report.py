"""Results on disk, as a table on the terminal, as the tables of docs/benchmarks.md, and as a plot."""

import json
import re
from pathlib import Path

from bench.turns import ROOT
from nanoft import UserError, files

RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
# in the order in which they are measured and shown
PARTS = ("ceilings", "step", "evaluate", "memory", "equal", "first_step", "loss", "bpe", "tokenize", "tokenize_long",
         "finetune", "generate", "profile", "size")


def number(x: float | None) -> str:
    """Three or four digits: 3,912; 41.3; 1.51; a dash for a run that did not reach its target."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"


def factor(result: dict, ours: dict, theirs: dict) -> float | None:
    """How many times better the first row's median is than the second's; None if one of them has none."""
    if not ours["median"] or not theirs["median"]:
        return None
    ratio = ours["median"] / theirs["median"]
    return ratio if result["higher_is_better"] else 1 / ratio


def comparable(lead: dict, row: dict) -> bool:
    """Whether a peer's row is compared with a lead row: not bf16 with fp32, nor a compiled start with an eager one."""
    return bool(row.get("peer")) and row.get("compiled") == lead.get("compiled") \
        and (row.get("dtype"), lead.get("dtype")) != ("bfloat16", "float32")


def leads(result: dict) -> list[dict]:
    return [row for name in result["lead"] for row in result["rows"] if row["name"] == name]


def table(results: dict[str, dict]) -> list[str]:
    """The lines of one table of several parts: {part: result}."""
    lines = [("", "", "median", "", "of the limit", "nanoft's factor")]
    for result in results.values():
        lines.append((result["title"],))
        for name, limit in result["limits"].items():
            lines.append(("  limit", name, number(limit), "GB/s" if name == "memory read" else "GFLOP/s"))
        for row in result["rows"]:
            compared = [(lead, factor(result, lead, row)) for lead in leads(result) if comparable(lead, row)]
            factors = [f"{ratio:.2f} x ({lead['name']})" for lead, ratio in compared if ratio]
            lines.append(("  peer" if row.get("peer") else "", row["name"], number(row["median"]),
                          row.get("unit", result["unit"]), f"{row['share']:.0%}" if "share" in row else "",
                          ", ".join(factors)))
    widths = [max(len(line[i]) for line in lines if len(line) > 1 and len(line) > i) for i in range(5)]
    text = []
    for line in lines:
        cells = [cell.rjust(width) if i in (2, 4) else cell.ljust(width)
                 for i, (cell, width) in enumerate(zip(line, [*widths, 0]))]
        text.append(line[0] if len(line) == 1 else "  ".join(cells).rstrip())
    return text


def folder_of(machine: dict) -> str:
    """The name of the folder with a machine's results: those of two machines are never mixed in one table."""
    if "gpu" in machine:
        return re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower())
    best = machine["isa"].split(" + ")[-1]  # of its instruction sets
    return re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {best} {machine['cores']} cores".lower().replace("(r)", ""))


def save(part: str, result: dict, machine: dict, command: str, date: str, folder: str | Path = RESULTS) -> None:
    """Write a part's result, with the machine and the command that it comes from, into the machine's folder."""
    folder = Path(folder) / folder_of(machine)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"part": part, "date": date, "command": command, "machine": machine, **result}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r",\s+", ", ", m[1]) + "]", text)  # a list a line
    files.write_whole(folder / f"{part}.json", lambda file: file.write((text + "\n").encode("utf-8")))
    if part == "size":
        plot_size(result, folder / "size.png")


def load(folder: str | Path = RESULTS) -> dict[Path, dict[str, dict]]:
    """{a machine's folder: {part: result}} of all saved results, in order."""
    saved = {machine: {part: files.read_json(machine / f"{part}.json") for part in PARTS
                       if (machine / f"{part}.json").exists()}
             for machine in sorted(Path(folder).glob("*/"))}
    return {machine: results for machine, results in saved.items() if results}


def page_block(saved: dict[Path, dict[str, dict]]) -> str:
    """Markdown of all saved results, machine by machine."""
    return "\n\n".join(machine_block(results, folder) for folder, results in saved.items())


def machine_block(results: dict[str, dict], folder: Path) -> str:
    """Markdown: the machine, nanoft's results there, and the peers of the same run with nanoft's factor over each."""
    lines = []
    dates = sorted({result["date"] for result in results.values()})
    machine = described(next(iter(results.values()))["machine"])
    lines += [f"**{machine}**; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; medians of interleaved rounds "
              f"(`bench/results/{folder.name}/`, `python -m bench`)."]
    if "ceilings" in results:
        limits = [f"{row['name']} {number(row['median'])} {row['unit']}" for row in results["ceilings"]["rows"]]
        lines += ["The machine's ceilings: " + ", ".join(limits) + "."]
    lines += ["", "| work | nanoft | the others, and nanoft's factor |", "|---|---|---|"]
    for result in results.values():
        for lead in leads(result):
            share = f" ({lead['share']:.0%} of {lead['share_of']})" if "share" in lead else ""
            others = [(row, factor(result, lead, row)) for row in result["rows"] if comparable(lead, row)]
            others = [f"{row['name']} {number(row['median'])}" + (f" (**{ratio:.2f}x**)" if ratio else "")
                      for row, ratio in others]
            which = lead["name"].removeprefix("nanoft").strip(", ")
            lines.append(f"| {result['title']}{': ' + which if which else ''} | {number(lead['median'])} "
                         f"{result['unit']}{share} | {', '.join(others) or '-'} |")
    if "size" in results:
        lines += ["", *size_table(results["size"])]
        if (folder / "size.png").exists():
            lines += ["", "![Tokens a second and peak memory against the context]"
                          f"(../bench/results/{folder.name}/size.png)"]
    return "\n".join(lines)


def size_table(result: dict) -> list[str]:
    """Markdown: a row per model, a column per length; tokens/s in each mode and the first mode's peak memory."""
    cells = {(row["model"], row["length"], row["mode"]): row for row in result["rows"]}
    models, lengths = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    modes = [mode for mode in ("compiled", "eager") if any(key[2] == mode for key in cells)]
    lines = [f"| {result['title']}: tokens/s {' / '.join(modes)}, peak GB | "
             + " | ".join(f"T={length:,}" for length in sorted(lengths)) + " |", "|---" * (len(lengths) + 1) + "|"]
    for model in models:
        texts = []
        for length in sorted(lengths):
            by_mode = [cells.get((model, length, mode)) for mode in modes]
            peak = next((f", {row['peak_mb'] / 1024:.1f}" for row in by_mode if row), "")
            texts.append(" / ".join(number(row and row["median"]) for row in by_mode) + peak)
        lines.append(f"| {model} | " + " | ".join(texts) + " |")
    return lines


def described(machine: dict) -> str:
    """One line on a machine."""
    card = f"{machine['gpu']}; " if "gpu" in machine else ""
    return (f"{card}{machine['cores']} cores of {machine['cpu']} ({machine['isa']}), {machine['memory_gb']} GB, "
            f"torch {machine['torch'].partition('+')[0]}")


def rewrite(path: str | Path, block: str) -> None:
    """Put the block between the two marks of a text file. Raises UserError if one is missing."""
    text = Path(path).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{Path(path).name} has no block from {BEGIN} to {END}; put both where the table belongs")
    files.write_whole(path, lambda file: file.write(f"{before}{begin}\n{block}\n{end}{after}".encode()))


def plot_size(result: dict, path: Path) -> bool:
    """A PNG of tokens per second and memory against the context, a line per model. False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed here: no plot of the sizes")
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    for i, model in enumerate(models):
        for mode, style in (("compiled", "-o"), ("eager", "--x")):
            rows = sorted((row for row in result["rows"] if (row["model"], row["mode"]) == (model, mode)),
                          key=lambda row: row["length"])
            lengths = [row["length"] for row in rows]
            label = f"{model}, {mode}"
            left.plot(lengths, [row["median"] for row in rows], style, color=f"C{i}", label=label)
            right.plot(lengths, [row["peak_mb"] / 1024 for row in rows], style, color=f"C{i}", label=label)
    for axes, title in ((left, "training rate (tokens/s)"), (right, "peak memory (GB)")):
        axes.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel=title)
        lengths = sorted({row["length"] for row in result["rows"]})
        axes.set_xticks(lengths, labels=[f"{length:,}" for length in lengths], minor=False)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.grid(alpha=0.3)
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(result["title"])
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True
