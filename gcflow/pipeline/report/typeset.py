"""How formulas and columns of numbers are set on the page."""

import re

from markupsafe import Markup, escape

TILDE = "\u0303"
# A letter, or what is no letter's name, with a power or an index: a token, or several in brackets.
SCRIPT = re.compile(r"(norm|[^\W\d_]\u0303?)([_^])(?:\(([^()]*)\)|([−\w.]+))")
TOKEN = re.compile(r"[\d.]+|[^\W\d_]+|\S")
# `−2.51 ± 0.11 (0.11)`: before the point, behind it, and the two deviations.
NUMBER = re.compile(r"([-−+]?[\d\u00a0]+)(\.\d+)?( ± [\d.]+)?( \([\d.]+\))?")
BEHIND_THE_POINT = 2


def formula(text: str) -> Markup:
    """Text whose powers and indices, such as `N^(α−1)` and `L_CT`, are MathML."""

    def scripted(found: re.Match[str]) -> str:
        tag = "msub" if found[2] == "_" else "msup"
        parts = (
            (token, "mn" if token[0].isdigit() else "mi" if token.isalpha() else "mo")
            for token in TOKEN.findall(found[3] or found[4])
        )
        script = "".join(f'<{kind} mathvariant="normal">{token}</{kind}>' for token, kind in parts)
        base = f'<mi mathvariant="normal">{found[1].removesuffix(TILDE)}</mi>'
        base = f'<mover accent="true">{base}<mo>~</mo></mover>' if TILDE in found[1] else base
        return f"<math><{tag}>{base}<mrow>{script}</mrow></{tag}></math>"

    return Markup(SCRIPT.sub(scripted, str(escape(text))))


def aligned(column: list[str]) -> list[Markup]:
    """Cells of a column whose numbers have their points below each other: what one lacks of another is left blank."""
    found = [NUMBER.fullmatch(cell) for cell in column]
    parts = range(1, NUMBER.groups + 1)
    longest = {n: max((match[n] or "" for match in found if match), key=len, default="") for n in parts}

    def part(text: str, n: int) -> Markup:
        blank = "0" * (len(longest[n]) - len(text)) if text else longest[n]
        space = Markup('<span class="blank" data-text="{}"></span>').format(blank) if blank else Markup()
        return text + space if n == BEHIND_THE_POINT else space + text

    return [
        Markup("").join(part((match[n] or "").replace("-", "−"), n) for n in parts) if match else escape(cell)
        for match, cell in zip(found, column, strict=True)
    ]
