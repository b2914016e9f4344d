"""What `sample.py --explain` writes: a page on what a model's answers rest on, and pictures.

A section for each text: its words coloured by what they add to the score of the answer, attention by layer and head,
rollout, for a language model the logit lens, and the neighbours of the words that matter most. The page needs neither
network nor matplotlib; the PNG files need matplotlib. Tokens that share one character are shown, and counted, together
as a unit.

Shapes: L layers, H heads, T tokens, U units.
"""

import json
from base64 import b64encode
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nanoft import UserError
from nanoft.inspect import explain, pictures, targets
from nanoft.inspect.targets import Subject, Target, label, token_name, unit_sums
from nanoft.pages import html, plots

MAX_BARS = 40        # words of a bar chart
MAX_NEIGHBOURS = 16  # words whose neighbours are shown

STYLE = """<style>.grid td,.grid th{border:0;padding:2px;text-align:center;font-weight:normal}
.grid button{border:1px solid var(--line);background:none;padding:0;display:block;cursor:pointer}
.grid button[aria-pressed=true]{outline:2px solid #3b82c4}
.grid img{display:block;width:clamp(56px,18vw,88px);height:clamp(56px,18vw,88px);max-width:none}
.maps img,.maps image{image-rendering:pixelated}
.maps svg text{font-size:11px;fill:currentColor}</style>"""

# a small map shows itself large; a square under the mouse says its weight, which is in the picture's opacity
SCRIPT = """<script>
document.querySelectorAll('.maps').forEach(box => {
  const names = JSON.parse(box.dataset.names), image = box.querySelector('image'), says = box.querySelector('.says');
  let pixels, title;
  function show(button) {
    box.querySelectorAll('button').forEach(b => b.setAttribute('aria-pressed', b === button));
    const small = button.querySelector('img'), canvas = document.createElement('canvas');
    image.setAttribute('href', small.src);
    says.textContent = title = small.alt;
    canvas.width = small.naturalWidth; canvas.height = small.naturalHeight;
    const context = canvas.getContext('2d');
    context.drawImage(small, 0, 0);
    pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  }
  box.querySelectorAll('button').forEach(button => button.onclick = () => show(button));
  image.onpointermove = event => {
    const at = image.getBoundingClientRect();
    const column = Math.floor((event.clientX - at.left) / at.width * pixels.width);
    const row = Math.floor((event.clientY - at.top) / at.height * pixels.height);
    if (row < 0 || column < 0 || row >= pixels.height || column >= pixels.width) return;
    const weight = (pixels.data[4 * (row * pixels.width + column) + 3] / 255) ** 2;
    says.textContent = `${title}: “${names[0][row]}” gives “${names[1][column]}” ${(100 * weight).toFixed(1)} %`;
  };
  const first = box.querySelector('button');
  first.querySelector('img').decode().then(() => show(first));
});
</script>"""


class Findings(NamedTuple):
    """What explain.py finds about a subject."""
    maps: np.ndarray                # (L, H, T, T)
    rollout: np.ndarray             # (T, T)
    integrated: list                # explain.Integrated of each target
    ways: list[dict]                # of each target {name: (T,)}, what the tokens matter; the first two have a sign


class View(NamedTuple):
    """Which part of a subject is drawn."""
    units: list                     # of the whole text
    first: int                      # attention is drawn of the units first to end - 1
    end: int
    layers: list
    heads: list

    def names(self) -> tuple[list[str], list[str]]:
        """What stands beside the rows and the columns of a map."""
        rows = [label(text) for text, _ in self.units[self.first:self.end]]
        return rows, rows + ["(all others)"] * (len(rows) < len(self.units))

    def crop(self, maps: np.ndarray) -> np.ndarray:
        """Maps (..., T, T) as they are drawn, (..., rows, columns); where units are left out, their sum is a column."""
        maps = targets.unit_maps(maps, self.units)[..., self.first:self.end, :]
        if self.end - self.first == len(self.units):
            return maps
        inside = maps[..., self.first:self.end]
        return np.concatenate((inside, 1 - inside.sum(-1, keepdims=True)), axis=-1).clip(min=0)

    def titles(self) -> list[list[str]]:
        """What stands above the maps, by layer and head."""
        return [[f"layer {layer + 1}, head {head + 1}" for head in self.heads] for layer in self.layers]

    def grid(self, maps: np.ndarray) -> np.ndarray:
        """The drawn layers and heads of (L, H, T, T), cropped."""
        return self.crop(maps[np.ix_(self.layers, self.heads)])


def write(folder, checkpoint, model, tokenizer, subjects: list[Subject], cfg) -> None:
    """Write index.html and, with matplotlib, PNG files into a folder, and print the findings.

    checkpoint: the path of the model's file. cfg: layers and heads (which maps: "1,3", "" = all), drawn_tokens and
    ig_steps, as in sample.py. Raises UserError for layers or heads that the model lacks.
    """
    folder = Path(folder)
    layers = parse_numbers("layers", cfg.layers, model.cfg.n_layer)
    heads = parse_numbers("heads", cfg.heads, model.cfg.n_head)
    model.requires_grad_(False)
    drawing, names, parts = plots.can_draw(), [], [STYLE]
    for number, subject in enumerate(subjects, 1):
        findings = explain_subject(model, tokenizer, subject, cfg.ig_steps)
        is_picture = subject.ids.dim() == 3
        units = pictures.units(len(findings.rollout)) if is_picture else targets.text_units(subject.ids, tokenizer)
        view = View(units, *targets.window(units, cfg.drawn_tokens, subject.targets[0].positions[0]), layers, heads)
        parts.append(f"<h2>{html.escape(label(subject.title, 80))}</h2><pre>{html.escape(subject.answer)}</pre>")
        if subject.note:
            parts.append(f'<p class="dim">{html.escape(subject.note)}</p>')
        pixels = subject.ids.cpu().numpy() if is_picture else None
        parts += [score_section(target, findings, units, i, pixels) for i, target in enumerate(subject.targets)]
        if model.cfg.n_layer:
            parts.append(attention_section(findings, view))
            if hasattr(model, "head"):
                parts.append(lens_section(model, tokenizer, subject, view))
            if not is_picture:
                parts.append(neighbours_section(model, tokenizer, subject, findings))
        if drawing and model.cfg.n_layer:
            names += save_pictures(folder, f"{number}-" * (number > 1), model, tokenizer, subject, findings, view)
        print_findings(subject, findings, units, cfg.ig_steps)
    html.write(folder / "index.html", f"What {Path(checkpoint).resolve().parent.name} looks at", *parts, SCRIPT)
    print(f"{folder}: index.html{''.join(f', {name}' for name in names[:8])}{', ...' if len(names) > 8 else ''}")


def parse_numbers(name: str, text: str, n: int) -> list[int]:
    """The numbers, counted from 0, that a text such as 1,3 names from 1; "" names all n. Raises UserError."""
    numbers = text.split(",") if text else [str(i) for i in range(1, n + 1)]
    if not all(number.isdigit() and 1 <= int(number) <= n for number in numbers):
        raise UserError(f"{name}={text}: this model has {name} 1 to {n}; give numbers, or nothing for all")
    return [int(number) - 1 for number in numbers]


def explain_subject(model, tokenizer, subject: Subject, steps: int) -> Findings:
    """What explain.py finds about a subject. steps: of integrated gradients."""
    trunk, ids, types = model.trunk, subject.ids, subject.types
    if ids.dim() == 3:  # of a picture, one of the mean colour
        base = trunk.tokens.mean[:len(ids)].round().to(ids.dtype).expand(ids.shape)
    else:
        base = explain.baseline(ids, tokenizer, model.cfg.causal)
    maps, embedded = explain.attention_maps(trunk, ids, types), explain.embed(trunk, ids, types)
    findings = Findings(maps.cpu().numpy(), explain.rollout(maps).cpu().numpy(), [], [])
    for target in subject.targets:
        gradient = explain.gradients(trunk, target.score, embedded.x[None], ids, types)[0]  # (T, C)
        findings.integrated.append(targets.integrated(trunk, subject, target, base, steps))
        products = explain.token_attributions(embedded.x, embedded.grams, gradient)
        findings.ways.append({
            "Integrated gradients: what each word adds": findings.integrated[-1].attributions,
            "Input x gradient: the same, were the score linear":
                products if target.n_grams is None else products + target.n_grams,
            "Saliency: how strongly a small change of the word would move the score": gradient.norm(dim=-1).cpu(),
            "Attention rollout: what reaches the tokens that the score is read from":
                findings.rollout[target.positions].mean(0)})
    return findings


def print_findings(subject: Subject, findings: Findings, units: list, steps: int) -> None:
    """Print a few lines; the convergence delta of each score as a fraction of its difference to the baseline."""
    print(subject.answer)
    for target, result in zip(subject.targets, findings.integrated):
        difference = result.score - result.baseline
        delta = abs(result.delta / difference) if abs(difference) > 1e-4 else 0.0  # nothing is explained, nothing wrong
        advice = f"; too large, try --ig_steps={4 * steps}" if delta > 0.05 else ""
        by_unit = unit_sums(result.attributions, units)
        strongest = [i for i in np.abs(by_unit).argsort()[::-1][:6] if by_unit[i]]
        print(f"    {target.name}: {result.score:.3f}, of the baseline {result.baseline:.3f}; convergence delta "
              f"{result.delta:+.1e}, {delta:.3%} of the difference ({steps} steps{advice})\n        "
              + "   ".join(f"{label(units[i][0])} {by_unit[i]:+.3f}" for i in strongest))


# ---- the sections of the page ------------------------------------------------------------------------------------


def score_section(target: Target, findings: Findings, units: list, i: int, pixels=None) -> str:
    """Score i: its text coloured in four ways, or its picture, pixels (C, S, S)."""
    result = findings.integrated[i]
    parts = [f"<h3>{html.escape(target.name)}: {result.score:.3f}</h3>",
             f'<p class="dim">The baseline has {result.baseline:.3f}; the words add up to '
             f"{result.attributions.sum():+.3f} (convergence delta {result.delta:+.1e}).</p>"]
    for number, (name, values) in enumerate(findings.ways[i].items()):
        by_unit = unit_sums(values, units)
        largest = max(np.abs(by_unit).max(), 1e-12)
        scale = f"blue raises it, orange lowers it, full colour {largest:.3g}" if number < 2 else f"most {largest:.3g}"
        notes = [f"{label(text)}: {value:+.3g}" for (text, _), value in zip(units, by_unit)]
        parts.append(f"<details{' open' if number == 0 else ''}><summary>{name} ({scale})</summary>"
                     + (html.words([text for text, _ in units], by_unit / largest, notes) if pixels is None else
                        pictures.heat_map(pixels, by_unit / largest, html.BLUE, html.ORANGE)) + "</details>")
    return "\n".join(parts)


def attention_section(findings: Findings, view: View) -> str:
    """A small map for each layer and head, and rollout; the chosen one large, with words at its sides."""
    rows, columns = view.names()
    maps = view.grid(findings.maps)

    def button(weights, name):
        return (f'<td><button type="button"><img width="{len(columns)}" height="{len(rows)}" alt="{name}" '
                f'src="{map_image(weights)}"></button>')

    lines = ["<tr><th>" + "".join(f"<th>head {head + 1}" for head in view.heads)]
    for layer, titles, layer_maps in zip(view.layers, view.titles(), maps):
        lines.append(f"<tr><th>layer {layer + 1}" + "".join(map(button, layer_maps, titles)))
    lines.append("<tr><th>rollout" + button(view.crop(findings.rollout), "rollout"))
    part = "" if len(rows) == len(view.units) else (
        f" {len(rows)} of {len(view.units)} tokens are drawn, from number {view.first + 1} on; the last column is "
        "what all others get (--drawn_tokens=N for more).")
    names = html.escape(json.dumps([rows, columns], ensure_ascii=False))
    return (f'<h3>Attention</h3><p class="dim">Row: the token that looks. Column: what it looks at. A row adds up to '
            f'100 %; opacity is the root of the weight, so that small ones are seen.{part}</p>'
            f'<div class="maps" data-names="{names}"><div class="wide"><table class="grid">{"".join(lines)}</table>'
            f'</div><p class="says" role="status">{view.titles()[0][0]}</p>'
            f'<div class="wide">{large_map(maps[0, 0], rows, columns)}</div></div>')


def large_map(weights: np.ndarray, rows: list[str], columns: list[str], side: int = 15, margin: int = 112) -> str:
    """An SVG of a map (rows, columns) with words at its sides. side, margin: pixels of a square, and of the words."""
    width, height = side * len(columns), side * len(rows)
    text = [f'<text x="{margin - 5}" y="{margin + side * i + 11}" text-anchor="end">{html.escape(name)}</text>'
            for i, name in enumerate(rows)]
    text += [f'<text transform="translate({margin + side * i + 11},{margin - 5}) rotate(-90)">{html.escape(name)}'
             "</text>" for i, name in enumerate(columns)]
    box = f'x="{margin}" y="{margin}" width="{width}" height="{height}"'
    return (f'<svg width="{margin + width + 2}" height="{margin + height + 2}" role="img" aria-label="attention">'
            f'{"".join(text)}<image href="{map_image(weights)}" {box} preserveAspectRatio="none"/>'
            f'<rect {box} fill="none" stroke="#8888" pointer-events="none"/></svg>')


def map_image(weights: np.ndarray) -> str:
    """Weights of 0 to 1, (rows, columns), as the URL of a PNG: blue, its opacity the root of the weight."""
    pixels = np.empty((*weights.shape, 4), dtype=np.uint8)
    pixels[..., :3] = html.BLUE
    pixels[..., 3] = np.round(255 * np.sqrt(weights.clip(0, 1)))
    return "data:image/png;base64," + b64encode(pictures.png(pixels)).decode()


def lens_section(model, tokenizer, subject: Subject, view: View) -> str:
    """The logit lens of a language model."""
    head = ["token", "embedding", *[f"layer {i + 1}" for i in range(model.cfg.n_layer)]]
    rows = [[token, *map(html.cell, *layers)] for token, *layers in zip(*lens(model, tokenizer, subject, view))]
    what = "the next token" if model.cfg.causal else "the masked token"
    return (f'<h3>Logit lens</h3><p class="dim">What each layer would predict for {what}, were it the last; the deeper '
            "the blue, the surer.</p>" + html.table(head, rows))


def lens(model, tokenizer, subject: Subject, view: View) -> tuple[list[str], list[list[str]], np.ndarray]:
    """P tokens read; for each the most likely token by layer, (P, L + 1) names, and its probabilities (P, L + 1)."""
    if model.cfg.causal:
        positions = [at for _, unit in view.units[view.first:view.end] for at in unit]
    else:
        positions = [target.positions[0] for target in subject.targets]
    likely = explain.logit_lens(model, subject.ids, positions).softmax(-1).max(-1)  # (L + 1, P)
    names = [[token_name(token, tokenizer) for token in row] for row in likely.indices.T.tolist()]
    read = [token_name(token, tokenizer) for token in subject.ids[positions].tolist()]
    return read, names, likely.values.T.cpu().numpy()


def neighbours_section(model, tokenizer, subject: Subject, findings: Findings) -> str:
    """The neighbours of the words that matter most; "" if only special tokens matter."""
    weight = sum(result.attributions.abs().numpy() for result in findings.integrated)  # (T,)
    special = set(tokenizer.special.values())
    tokens = dict.fromkeys(int(subject.ids[at]) for at in weight.argsort()[::-1])
    tokens = [token for token in tokens if token not in special][:MAX_NEIGHBOURS]
    if not tokens:
        return ""
    ids, cosines = explain.neighbours(model.trunk, torch.tensor(tokens, device=subject.ids.device))
    rows = [[token_name(token, tokenizer), *(f"{token_name(i, tokenizer)} {x:.2f}" for i, x in zip(*nearest))]
            for token, *nearest in zip(tokens, ids.tolist(), cosines.tolist())]
    return ('<h3>Neighbours</h3><p class="dim">The tokens whose embeddings are most alike (cosine), for those that '
            "matter most here.</p>" + html.table(["token", *[""] * ids.size(1)], rows))


# ---- pictures ----------------------------------------------------------------------------------------------------


def save_pictures(folder: Path, prefix: str, model, tokenizer, subject: Subject, findings: Findings,
                  view: View) -> list[str]:
    """Write the PNG files of a subject; their names."""
    figures = {"words": word_bars(subject, findings, view.units),
               "attention": draw_maps(view.grid(findings.maps), view.titles(), view),
               "rollout": draw_maps(view.crop(findings.rollout)[None, None], [["attention rollout"]], view)}
    if hasattr(model, "head"):
        figures["lens"] = lens_picture(*lens(model, tokenizer, subject, view))
    for name, figure in figures.items():
        plots.save(figure, folder / f"{prefix}{name}.png")
    return [f"{prefix}{name}.png" for name in figures]


def word_bars(subject: Subject, findings: Findings, units: list):
    """Integrated gradients as bars, a chart for each score: the strongest words in the order of the text."""
    charts = [unit_sums(result.attributions, units) for result in findings.integrated]
    figure = plots.new_figure(2 + 0.24 * min(MAX_BARS, len(units)), 2.6 * len(charts))
    for ax, values, target in zip(figure.subplots(len(charts), squeeze=False)[:, 0], charts, subject.targets):
        drawn = np.sort(np.abs(values).argsort()[::-1][:MAX_BARS])
        ax.bar(range(len(drawn)), values[drawn], color=[plots.COLOURS[int(x < 0)] for x in values[drawn]])
        ax.set_xticks(range(len(drawn)), [label(units[i][0]) for i in drawn], rotation=90)
        part = f", the {len(drawn)} strongest of {len(units)} tokens" if len(drawn) < len(units) else ""
        ax.set(title=f"integrated gradients of the {target.name}{part}", ylabel="part of the logit")
        ax.axhline(0, color=plots.INK, linewidth=0.8)
    return figure


def draw_maps(maps: np.ndarray, titles: list[list[str]], view: View):
    """A figure of maps (n, m, rows, columns); words stand at the sides of up to four of them, else numbers from 1."""
    from matplotlib.colors import PowerNorm  # here, not above: the page does without

    rows, columns = view.names()
    n, m = maps.shape[:2]
    is_named = n * m <= 4
    side = max(2.0, 0.16 * len(rows) + 1) if is_named else 1.7
    figure = plots.new_figure(side * m + 1, side * n + 0.6)
    first = 0 if is_named else view.first + 1
    extent = (first - 0.5, first + len(columns) - 0.5, first + len(rows) - 0.5, first - 0.5)
    norm = PowerNorm(0.5, 0, maps[..., :len(rows)].max())  # not that of all others
    axes = figure.subplots(n, m, squeeze=False, sharex=True, sharey=True)
    for (i, j), ax in np.ndenumerate(axes):
        ax.imshow(maps[i, j], cmap="Blues", norm=norm, aspect="auto", interpolation="nearest", extent=extent)
        ax.grid(False)
        ax.set_title(titles[i][j], fontsize=9)
        if is_named:
            ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
            ax.set_yticks(range(len(rows)), rows, fontsize=8)
    unit = "" if is_named else " (number)"
    figure.supxlabel(f"token that is looked at{unit}", fontsize=10)
    figure.supylabel(f"token that looks{unit}", fontsize=10)
    figure.colorbar(axes[0, 0].images[0], ax=axes, label="share of the attention", shrink=0.8)
    return figure


def lens_picture(read: list[str], names: list[list[str]], probabilities: np.ndarray):
    """The logit lens, as `lens` gives it: for each token the most likely one by layer, the surer the bluer."""
    n = probabilities.shape[1]
    figure = plots.new_figure(2 + 1.15 * n, 1.2 + 0.21 * len(read))
    ax = figure.subplots()
    ax.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.grid(False)
    for (i, j), p in np.ndenumerate(probabilities):
        ax.text(j, i, names[i][j], ha="center", va="center", fontsize=8, color="white" if p > 0.6 else "black")
    ax.set_yticks(range(len(read)), read, fontsize=8)
    ax.set_xticks(range(n), ["embedding", *[f"layer {i}" for i in range(1, n)]])
    ax.set(title="logit lens: what each layer would predict next", ylabel="token read")
    figure.colorbar(ax.images[0], label="probability of the token named")
    return figure
