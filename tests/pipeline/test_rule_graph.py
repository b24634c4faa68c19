"""The picture of the rules in Snakemake's report."""

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
from projects import ROOT

from gcflow.pipeline.params import Params
from gcflow.pipeline.rule_graph import HEIGHT, WIDTH, kinds_before, rule_graph
from gcflow.pipeline.stages import Stages

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=["embedded", "rehearsal", "paper"])
def stages(request):
    return list(Stages(Params(ROOT / "params.yaml"), request.param))


def closure(pairs):
    while more := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
        pairs = pairs | more
    return pairs


def test_lines_imply_what_comes_after_what_and_none_implies_another(stages):
    before = {(parent, kind) for kind, parents in kinds_before(stages).items() for parent in parents}
    makers = {out: stage.kind for stage in stages for out in stage.outs}
    read = {(makers[dep], stage.kind) for stage in stages for dep in stage.deps if dep in makers}
    assert closure(before) == closure({pair for pair in read if pair[0] != pair[1]})
    assert all(closure(before - {line}) != closure(before) for line in before)


def test_every_kind_has_its_number_of_jobs_in_a_box_of_its_own_right_of_all_that_comes_before(stages):
    picture = ElementTree.fromstring(rule_graph(stages))
    corners = [(float(box.attrib["x"]), float(box.attrib["y"])) for box in picture.iter(f"{SVG}rect")]
    words = [text.text for text in picture.iter(f"{SVG}text")]
    places = dict(zip(words[::2], corners, strict=True))
    jobs = Counter(stage.kind for stage in stages)
    assert {kind: int(found.split()[0]) for kind, found in zip(words[::2], words[1::2], strict=True)} == jobs
    for kind, parents in kinds_before(stages).items():
        assert all(places[parent][0] + WIDTH < places[kind][0] for parent in parents)
    assert all(a == b or abs(a[0] - b[0]) >= WIDTH or abs(a[1] - b[1]) >= HEIGHT for a in corners for b in corners)
    # And no line passes through a box: every horizontal piece is between two of them.
    (path,) = picture.iter(f"{SVG}path")
    for x, y in re.findall(r"(\d+) (\d+)h", path.attrib["d"]):
        assert all(left != float(x) or not top < float(y) < top + HEIGHT for left, top in corners)
