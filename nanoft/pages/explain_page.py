"""What `sample.py --explain` writes: one page on what the answers of a model rest on, and pictures.

A section for each text: its words coloured by what they add to the answer's score, attention by layer and head,
rollout, for a language model the logit lens, and the neighbours of the words that matter most. The page needs neither
network nor matplotlib, the PNGs need it. Tokens that hold parts of one character are shown, and counted, together.
"""

import json
import struct
import zlib
from base64 import b64encode
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nanoft import UserError
from nanoft.inspect import explain
from nanoft.inspect.targets import label, merged, name_of, sums, units_of, window
from nanoft.pages import html, plots

BARS = 40        # words of a bar chart
NEIGHBOURS = 16  # words whose neighbours are shown


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


def write(folder, checkpoint, model, tokenizer, subjects, cfg):
    """index.html and, where matplotlib is, PNGs into a folder; what is found also in short lines on the screen.

    checkpoint: the path of the model's file. cfg has layers and heads (which maps: "1,3", "" = all), drawn_tokens and
    ig_steps, as in sample.py.
    """
    if not model.cfg.n_layer:
        raise UserError(f"{checkpoint} has no blocks, so there is no attention to show; leave --explain out")
    folder = Path(folder)
    layers = choose("layers", cfg.layers, model.cfg.n_layer)
    heads = choose("heads", cfg.heads, model.cfg.n_head)
    model.requires_grad_(False)
    folder.mkdir(parents=True, exist_ok=True)
    drawing, written, deltas, parts = plots.can_draw(), [], [], [STYLE]
    for number, subject in enumerate(subjects, 1):
        found = look(model, tokenizer, subject, cfg.ig_steps)
        units = units_of(subject.ids, tokenizer)
        drawn = Drawn(units, *window(units, cfg.drawn_tokens, subject.targets[0].places), layers, heads)
        parts.append(f"<h2>{html.escape(label(subject.title, 80))}</h2><pre>{html.escape(subject.said)}</pre>")
        if subject.note:
            parts.append(f'<p class="dim">{html.escape(subject.note)}</p>')
        parts += [words_part(target, found, units, i) for i, target in enumerate(subject.targets)]
        parts += [maps_part(found, drawn), *language_parts(model, tokenizer, subject, found, drawn)]
        if drawing:
            written += draw(folder, "" if number == 1 else f"{number}-", model, tokenizer, subject, found, drawn)
        deltas += say(subject, found, units, cfg.ig_steps)
    html.write(folder / "index.html", f"What {Path(checkpoint).resolve().parent.name} looks at", *parts, SCRIPT)
    if len(deltas) > 1:
        deltas = np.array(deltas)
        print(f"convergence delta of {len(deltas)} scores: median {np.median(deltas):.3%}, largest {deltas.max():.3%} "
              f"of the difference to the baseline, {(deltas < 0.01).sum()} below 1 % ({cfg.ig_steps} steps)")
    print(f"{folder}: index.html{''.join(f', {name}' for name in written[:8])}{', ...' if len(written) > 8 else ''}")


def choose(name, text, n):
    """The numbers, from 0, that a text such as 1,3 names from 1; "" names all n. Raises UserError."""
    numbers = text.split(",") if text else [str(i) for i in range(1, n + 1)]
    if not all(number.isdigit() and 1 <= int(number) <= n for number in numbers):
        raise UserError(f"{name}={text}: this model has {name} 1 to {n}; give numbers, or nothing for all")
    return [int(number) - 1 for number in numbers]


class Found(NamedTuple):
    """What the methods say of a subject, as arrays."""
    maps: np.ndarray      # (L, H, T, T)
    flow: np.ndarray      # (T, T) rollout
    integrated: list      # of a target: explain.Integrated
    products: list        # (T,) input x gradient
    lengths: list         # (T,) saliency


class Drawn(NamedTuple):
    """What is drawn of a subject."""
    units: list
    first: int            # of the units: those whose attention is drawn
    end: int
    layers: list
    heads: list


def look(model, tokenizer, subject, steps):
    trunk, ids, types = model.trunk, subject.ids, subject.types
    base = explain.baseline(ids, tokenizer, model.cfg.causal)
    maps, embedded = explain.attention_maps(trunk, ids, types), explain.embed(trunk, ids, types)
    integrated, products, lengths = [], [], []
    for target in subject.targets:
        gradient = explain.gradients(trunk, target.score, embedded.read[None], ids, types)
        integrated.append(explain.integrated_gradients(trunk, target.score, ids, base, types, steps))
        products.append(explain.input_x_gradient(embedded, gradient[0]).cpu().numpy())
        lengths.append(explain.saliency(gradient[0]).cpu().numpy())
    return Found(maps.cpu().numpy(), explain.rollout(maps).cpu().numpy(), integrated, products, lengths)


def say(subject, found, units, steps):
    """The findings as lines on the screen; the deltas, as parts of the differences."""
    print(subject.said)
    deltas = []
    for target, result in zip(subject.targets, found.integrated):
        difference = result.score - result.base
        part = abs(result.delta / difference) if abs(difference) > 1e-4 else 0.0  # none where nothing is explained
        deltas.append(part)
        advice = f"; too large, try --ig_steps={4 * steps}" if part > 0.05 else ""
        by_unit = sums(result.tokens.cpu(), units)
        strongest = [i for i in np.abs(by_unit).argsort()[::-1][:6] if by_unit[i]]
        print(f"    {target.name}: {result.score:.3f}, of the baseline {result.base:.3f}; convergence delta "
              f"{result.delta:+.1e}, {part:.3%} of the difference ({steps} steps{advice})\n        "
              + "   ".join(f"{label(units[i][0])} {by_unit[i]:+.3f}" for i in strongest))
    return deltas


def views(target, found, units, i):
    """(name, values by unit) of the four ways in which score i is taken apart; the first two have a sign."""
    return [(name, sums(values, units)) for name, values in (
        ("Integrated gradients: what each word adds", found.integrated[i].tokens.cpu().numpy()),
        ("Input x gradient: the same, were the score linear", found.products[i]),
        ("Saliency: how strongly a small change of the word would move the score", found.lengths[i]),
        ("Attention rollout: what reaches the tokens that the score is read from",
         found.flow[target.places].mean(0)))]


def words_part(target, found, units, i):
    """One score: its text coloured in four ways."""
    result = found.integrated[i]
    parts = [f"<h3>{html.escape(target.name)}: {result.score:.3f}</h3>",
             f'<p class="dim">The baseline has {result.base:.3f}; the words add up to {result.tokens.sum():+.3f} '
             f"(convergence delta {result.delta:+.1e}).</p>"]
    for number, (name, by_unit) in enumerate(views(target, found, units, i)):
        largest = max(np.abs(by_unit).max(), 1e-12)
        scale = f"blue raises it, orange lowers it, full colour {largest:.3g}" if number < 2 else f"most {largest:.3g}"
        notes = [f"{label(text)}: {value:+.3g}" for (text, _), value in zip(units, by_unit)]
        parts.append(f"<details{' open' if number == 0 else ''}><summary>{name} ({scale})</summary>"
                     + html.words([text for text, _ in units], by_unit / largest, notes) + "</details>")
    return "\n".join(parts)


def cut_map(maps, drawn):
    """Maps (..., U, U) as they are drawn: the units of the window, and a column for all others if there are any."""
    first, end = drawn.first, drawn.end
    maps = merged(maps, drawn.units)[..., first:end, :]
    if end - first == len(drawn.units):
        return maps
    inside = maps[..., first:end]
    return np.concatenate((inside, 1 - inside.sum(-1, keepdims=True)), axis=-1).clip(min=0)


def axis_names(drawn):
    rows = [label(text) for text, _ in drawn.units[drawn.first:drawn.end]]
    return rows, rows + (["(all others)"] if len(rows) < len(drawn.units) else [])


def maps_part(found, drawn):
    """Attention: a small map for each layer and head, and rollout; the chosen one large, with words at its sides."""
    rows, columns = axis_names(drawn)
    maps = cut_map(found.maps[np.ix_(drawn.layers, drawn.heads)], drawn)

    def button(weights, name):
        return (f'<td><button type="button"><img width="{len(columns)}" height="{len(rows)}" alt="{name}" '
                f'src="{image(weights)}"></button>')

    lines = ["<tr><th>" + "".join(f"<th>head {head + 1}" for head in drawn.heads)]
    for layer, some in zip(drawn.layers, maps):
        lines.append(f"<tr><th>layer {layer + 1}" + "".join(
            button(weights, f"layer {layer + 1}, head {head + 1}") for head, weights in zip(drawn.heads, some)))
    lines.append("<tr><th>rollout" + button(cut_map(found.flow, drawn), "rollout"))
    shown = "" if len(rows) == len(drawn.units) else (
        f" {len(rows)} of {len(drawn.units)} tokens are drawn, from number {drawn.first + 1} on; the last column is "
        "what all others get (--drawn_tokens=N for more).")
    names = html.escape(json.dumps([rows, columns], ensure_ascii=False))
    return (f'<h3>Attention</h3><p class="dim">Row: the token that looks. Column: what it looks at. A row adds up to '
            f'100 %; opacity is the root of the weight, so that small ones are seen.{shown}</p>'
            f'<div class="maps" data-names="{names}"><div class="wide"><table class="grid">{"".join(lines)}</table>'
            f'</div><p class="says" role="status">layer {drawn.layers[0] + 1}, head {drawn.heads[0] + 1}</p>'
            f'<div class="wide">{large_map(maps[0, 0], rows, columns)}</div></div>')


def large_map(weights, rows, columns, side=15, margin=112):
    """An SVG of one map with words at its sides."""
    width, height = side * len(columns), side * len(rows)
    text = [f'<text x="{margin - 5}" y="{margin + side * i + 11}" text-anchor="end">{html.escape(name)}</text>'
            for i, name in enumerate(rows)]
    text += [f'<text transform="translate({margin + side * i + 11},{margin - 5}) rotate(-90)">{html.escape(name)}'
             "</text>" for i, name in enumerate(columns)]
    place = f'x="{margin}" y="{margin}" width="{width}" height="{height}"'
    return (f'<svg width="{margin + width + 2}" height="{margin + height + 2}" role="img" aria-label="attention">'
            f'{"".join(text)}<image href="{image(weights)}" {place} preserveAspectRatio="none"/>'
            f'<rect {place} fill="none" stroke="#8888" pointer-events="none"/></svg>')


def image(weights):
    """Weights of 0 to 1, (rows, columns), as a PNG to stand in a page: blue, its opacity the weight's root."""
    pixels = np.empty((*weights.shape, 4), dtype=np.uint8)
    pixels[..., :3] = html.BLUE
    pixels[..., 3] = np.round(255 * np.sqrt(weights.clip(0, 1)))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", weights.shape[1], weights.shape[0], 8, 6, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels), 9)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return "data:image/png;base64," + b64encode(png).decode()


def language_parts(model, tokenizer, subject, found, drawn):
    """The logit lens of a language model, and the neighbours of the words that matter most."""
    parts = []
    if hasattr(model, "head"):
        places, names, rows = lens(model, tokenizer, subject, drawn)
        head = ["token", "embedding", *[f"layer {i + 1}" for i in range(model.cfg.n_layer)]]
        cells = [[name_of(int(subject.ids[at]), tokenizer), *[html.cell(word, p) for word, p in zip(*row)]]
                 for at, *row in zip(places, names, rows)]
        what = "the next token" if model.cfg.causal else "the word in the gap"
        parts.append(f'<h3>Logit lens</h3><p class="dim">What each layer would say for {what}, were it the last; the '
                     "deeper the blue, the surer.</p>" + html.table(head, cells))
    weight = sum(np.abs(result.tokens.cpu().numpy()) for result in found.integrated)
    special = set(tokenizer.special.values())
    strongest = [int(subject.ids[at]) for at in weight.argsort()[::-1]]
    strongest = [token for token in dict.fromkeys(strongest) if token not in special][:NEIGHBOURS]
    if strongest:
        ids, cosines = explain.neighbours(model.trunk, torch.tensor(strongest, device=subject.ids.device))
        rows = [[name_of(token, tokenizer), *[f"{name_of(i, tokenizer)} {x:.2f}" for i, x in zip(*found)]]
                for token, *found in zip(strongest, ids.tolist(), cosines.tolist())]
        parts.append('<h3>Neighbours</h3><p class="dim">The tokens whose embeddings are most alike (cosine), for those '
                     "that matter most here.</p>" + html.table(["token", *[""] * ids.size(1)], rows))
    return parts


def lens(model, tokenizer, subject, drawn):
    """P places, and for each the names (P, L + 1) of the likeliest token by layer, and its probabilities (P, L + 1)."""
    if model.cfg.causal:
        places = [at for _, some in drawn.units[drawn.first:drawn.end] for at in some]
    else:
        places = [target.places[0] for target in subject.targets]
    likely = explain.logit_lens(model, subject.ids, places).softmax(-1).max(-1)  # (L + 1, P)
    names = [[name_of(token, tokenizer) for token in row] for row in likely.indices.T.tolist()]
    return places, names, likely.values.T.cpu().numpy()


# ---- pictures ----------------------------------------------------------------------------------------------------


def draw(folder, prefix, model, tokenizer, subject, found, drawn):
    """The PNGs of a subject; their names."""
    from matplotlib.figure import Figure

    shown = {"words": word_bars(Figure, subject, found, drawn.units), "attention": attention_grid(Figure, found, drawn),
             "rollout": labelled_map(Figure, cut_map(found.flow, drawn), "attention rollout", drawn)}
    if hasattr(model, "head"):
        shown["lens"] = lens_picture(Figure, *lens(model, tokenizer, subject, drawn), subject, tokenizer)
    for name, figure in shown.items():
        plots.save(figure, folder / f"{prefix}{name}.png")
    return [f"{prefix}{name}.png" for name in shown]


def word_bars(Figure, subject, found, units):
    """Integrated gradients as bars, a chart for each score: the words of most effect in the order of the text."""
    charts = [sums(result.tokens.cpu(), units) for result in found.integrated]
    widest = min(BARS, len(units))
    figure = Figure(figsize=(2 + 0.24 * widest, 2.6 * len(charts)), layout="constrained")
    for ax, values, target in zip(figure.subplots(len(charts), squeeze=False)[:, 0], charts, subject.targets):
        kept = np.sort(np.abs(values).argsort()[::-1][:BARS])
        ax.bar(range(len(kept)), values[kept], color=[plots.COLOURS[int(x < 0)] for x in values[kept]])
        ax.set_xticks(range(len(kept)), [label(units[i][0]) for i in kept], rotation=90)
        some = f", the {len(kept)} strongest of {len(units)} tokens" if len(kept) < len(units) else ""
        ax.set(title=f"integrated gradients of the {target.name}{some}", ylabel="part of the logit")
        ax.axhline(0, color=plots.INK, linewidth=0.8)
    return figure


def attention_grid(Figure, found, drawn):
    """A map for each layer and head; words at the sides where there are few of them."""
    maps = cut_map(found.maps[np.ix_(drawn.layers, drawn.heads)], drawn)
    rows, columns = axis_names(drawn)
    labelled = len(drawn.layers) * len(drawn.heads) <= 4
    side = max(2.0, 0.16 * len(rows) + 1) if labelled else 1.7
    figure = Figure(figsize=(side * len(drawn.heads) + 1, side * len(drawn.layers) + 0.6), layout="constrained")
    axes = figure.subplots(len(drawn.layers), len(drawn.heads), squeeze=False, sharex=True, sharey=True)
    for i, layer in enumerate(drawn.layers):
        for j, head in enumerate(drawn.heads):
            show(axes[i, j], maps[i, j], maps[..., :len(rows)].max(), drawn.first, rows if labelled else None, columns)
            axes[i, j].set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
    figure.supxlabel("token that is looked at (number)" if not labelled else "token that is looked at", fontsize=10)
    figure.supylabel("token that looks (number)" if not labelled else "token that looks", fontsize=10)
    figure.colorbar(axes[0, 0].images[0], ax=axes, label="attention weight", shrink=0.8)
    return figure


def labelled_map(Figure, weights, title, drawn):
    rows, columns = axis_names(drawn)
    side = 1.6 + 0.16 * len(rows)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    ax = figure.subplots()
    show(ax, weights, weights[:, :len(rows)].max(), drawn.first, rows, columns)  # not that of all others
    ax.set(title=title, xlabel="token that is looked at", ylabel="token that looks")
    figure.colorbar(ax.images[0], label="share")
    return figure


def show(ax, weights, largest, first, rows, columns):
    """A map with words at its sides; where rows is None with the tokens' numbers, from 1 on."""
    from matplotlib.colors import PowerNorm

    begin = 0 if rows else first + 1
    edges = (begin - 0.5, begin + weights.shape[1] - 0.5, begin + weights.shape[0] - 0.5, begin - 0.5)
    ax.imshow(weights, cmap="Blues", norm=PowerNorm(0.5, 0, largest), aspect="auto", interpolation="nearest",
              extent=edges)
    ax.grid(False)
    if rows:
        ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)


def lens_picture(Figure, places, names, likely, subject, tokenizer):
    """The logit lens: for each place the likeliest token of each layer, the surer the bluer."""
    layers = likely.shape[1]
    figure = Figure(figsize=(2 + 1.15 * layers, 1.2 + 0.21 * len(places)), layout="constrained")
    ax = figure.subplots()
    ax.imshow(likely, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.grid(False)
    for i, row in enumerate(names):
        for j, name in enumerate(row):
            ax.text(j, i, name, ha="center", va="center", fontsize=8, color="white" if likely[i, j] > 0.6 else "black")
    ax.set_yticks(range(len(places)), [name_of(int(subject.ids[at]), tokenizer) for at in places], fontsize=8)
    ax.set_xticks(range(layers), ["embedding", *[f"layer {i}" for i in range(1, layers)]])
    ax.set(title="logit lens: what each layer would say next", ylabel="token read")
    figure.colorbar(ax.images[0], label="probability of the token named")
    return figure
