"""The page's results as HTML: every image with its label, bits/dim, p-value and map of surprise."""

from __future__ import annotations

from html import escape

from .examination import ATTACKS, Examination, Judged
from .maps import MOST_BITS, coloured, data_url, legend, picture_of, plane

SHOWN_CLASSES = 3
ALPHA = 0.05  # a p-value of at most this is called suspicious


def percent(fraction: float) -> str:
    """A fraction in [0, 1] for people; what is nearly all or nearly nothing is not rounded to it."""
    if fraction > 0.999:
        return "> 99.9 %"
    return "< 0.1 %" if fraction < 0.001 else f"{100 * fraction:.1f} %"


def p_value_text(p_value: float) -> str:
    """A p-value for people, and whether it is suspicious."""
    number = f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"
    return f"{number} (suspicious)" if p_value <= ALPHA else number


def card(title: str, judged: Judged, channel: str, *, line: float | None = None, note: str = "") -> str:
    """One image and what is said of it. line: how far down, in [0, 1], a line marks what is purified; None: none."""
    _, H, W = judged.image.shape
    bits = plane(judged.surprise, channel)
    top = bits.flatten().argmax().item()
    row, column = divmod(int(top), W)
    shown = "" if channel == "mean" else f" of the channel {channel}"
    image_text = f"{title}: {W} by {H} pixels, which the classifier calls {judged.label}"
    map_text = (
        f"Map of surprise{shown}: {float(bits.mean()):.2f} bits on average, at most {float(bits.max()):.1f}, "
        f"at row {row + 1}, column {column + 1}"
    )
    marker = "" if line is None else f'<span class="pf-line" style="top:{100 * line:.2f}%" aria-hidden="true"></span>'
    pictures = "".join(
        f'<div class="pf-frame"><img src="{data_url(pixels)}" alt="{escape(text)}">{marker}</div>'
        for pixels, text in ((picture_of(judged.image), image_text), (coloured(bits), map_text))
    )
    classes = "".join(
        f'<li><span class="pf-name">{escape(name)}</span>'
        f'<span class="pf-bar" aria-hidden="true"><span style="width:{100 * confidence:.1f}%"></span></span>'
        f'<span class="pf-number">{percent(confidence)}</span></li>'
        for name, confidence in judged.classes[:SHOWN_CLASSES]
    )
    suspicious = ' class="pf-suspicious"' if judged.p_value <= ALPHA else ""
    return (
        f'<article class="pf-card"><h3>{escape(title)}</h3><p class="pf-note">{escape(note)}</p>'
        f'<div class="pf-pictures">{pictures}</div>'
        f'<ol class="pf-classes" aria-label="The likeliest classes">{classes}</ol>'
        f"<dl><div><dt>bits/dim</dt><dd>{judged.bits_per_dim:.3f}</dd></div>"
        f"<div><dt>p-value</dt><dd{suspicious}>{p_value_text(judged.p_value)}</dd></div></dl></article>"
    )


def results(examination: Examination, channel: str) -> str:
    """The image at its three stages, what came of it in a sentence, and the legend of the maps."""
    attack = "no attack"
    if examination.attack != "none":
        attack = f"{ATTACKS[examination.attack]}; eps {examination.attack_eps}"
    cards = (
        card("Clean", examination.clean, channel, note="as given"),
        card("Attacked", examination.attacked, channel, note=attack),
        card("Purified", examination.purified, channel, note=f"eps {examination.purify_eps}"),
    )
    return (
        f'<p class="pf-verdict" role="status">{escape(verdict(examination))}</p>'
        f'<div class="pf-cards">{"".join(cards)}</div>{scale()}'
    )


def verdict(examination: Examination) -> str:
    """What the attack and the purification did to the label."""
    before, attacked, after = (each.label for each in (examination.clean, examination.attacked, examination.purified))
    if attacked == before:
        first = "" if examination.attack == "none" else f"The attack does not change the label, {before}. "
        kept = f"Purification keeps {'the label, ' + before if not first else 'it'}."
        return first + (kept if after == before else f"Purification changes it from {before} to {after}.")
    first = f"The attack turns {before} into {attacked}. "
    if after == before:
        return f"{first}Purification brings {before} back."
    return f"{first}Purification does not bring {before} back: the label is {after}."


def decoding(judged: Judged, rows: int, height: int, channel: str) -> str:
    """The image once so many of its rows are purified."""
    note = f"{rows} of {height} rows purified, the others as attacked"
    return f'<div class="pf-cards pf-single">{card("On the way", judged, channel, line=rows / height, note=note)}</div>'


def scale() -> str:
    """The legend of the maps: which colour is how many bits."""
    ticks = "".join(f"<span>{bits}</span>" for bits in range(0, int(MOST_BITS) + 1, 3))
    ticks = ticks.replace(f"<span>{int(MOST_BITS)}</span>", f"<span>{int(MOST_BITS)}+</span>")
    return (
        f'<div class="pf-scale" role="img" aria-label="Colours of the maps, from dark for 0 bits to light for '
        f'{MOST_BITS:g} bits or more"><img src="{data_url(legend())}" alt=""><div class="pf-ticks">{ticks}</div>'
        "<p>surprise in bits: how unexpected a value is after all that come before it; 8 is a blind guess</p></div>"
    )


def message(text: str) -> str:
    """An error for the user; nothing for an empty text."""
    return f'<p class="pf-error" role="alert">{escape(text)}</p>' if text else ""


def remark(text: str) -> str:
    """What the user should know of the image."""
    return f'<p class="pf-note">{escape(text)}</p>'
