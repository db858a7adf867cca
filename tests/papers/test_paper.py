"""A paper's file is read strictly: what is wrong with it is said in one sentence, with the key."""

import pytest

from trainwright.core.errors import UserError
from trainwright.papers.paper import STAGES, parse

WHOLE = {
    "title": "A Paper", "year": 2024, "about": "It does a thing.", "kind": "method", "stage": "fine-tuning",
    "modality": "text",
}
CLAIM = {
    "says": "it is faster", "suite": "sft", "compares": "mine against lora", "metric": "seconds_per_step",
    "expects": {"at_most": 0.8}, "arms": {"mine": [{"use": "paca"}], "lora": [{"use": "lora"}]},
}


def read(claim=None, **changes):
    return parse(WHOLE | ({"claim": [claim]} if claim else {}) | changes, "mine", "mine.toml")


def without(key):
    return {k: v for k, v in CLAIM.items() if k != key}


def test_a_claim_names_its_two_arms():
    found = read(CLAIM).claims[0]
    assert (found.arm, found.baseline, found.place) == ("mine", "lora", "sft")


def test_claims_share_the_arms_of_their_paper():
    found = read(without("arms"), arm=CLAIM["arms"]).claims[0]
    assert set(found.arms) == {"mine", "lora"}


def test_what_is_not_tested_has_a_reason_and_no_numbers():
    told = {"says": "it wins", "compares": "mine against others", "not_tested": "needs scale",
            "why": "the paper has 7 B parameters"}
    assert read(told).claims[0].not_tested == "needs scale"
    with pytest.raises(UserError, match=r"claim 1: it is not tested, so it has no metric"):
        read(told | {"metric": "loss/mean"})


@pytest.mark.parametrize(("claim", "says"), [
    (without("suite"), "say one of suite, recipe and script"),
    (CLAIM | {"script": "x.py"}, "say one of suite, recipe and script"),
    (CLAIM | {"compares": "mine"}, 'write "ARM against BASELINE"'),
    (CLAIM | {"compares": "mien against lora"}, r"'mien' is no arm \(did you mean 'mine'\?\)"),
    (without("expects"), "say what it expects"),
    (CLAIM | {"why": "because"}, "not_tested and why go together"),
    (without("suite") | {"not_tested": "needs money", "metric": "", "why": "x"}, "is none of needs scale"),
    (CLAIM | {"expect": "lower"}, "unknown setting 'expect'"),
    (without("says"), "'says' is needed"),
])
def test_loose_ends_of_a_claim_are_errors(claim, says):
    with pytest.raises(UserError, match=rf"^mine\.toml: claim 1.*{says}"):
        read(claim)


@pytest.mark.parametrize(("changes", "says"), [
    ({"kind": "poem"}, "kind must be one of"),
    ({"stage": "fine tuning"}, "did you mean 'fine-tuning'"),
    ({"colour": 1}, "unknown setting 'colour'"),
    ({"id": "x"}, "'id' is no key of a paper"),
    ({"claim": [CLAIM, CLAIM]}, "claim 2 says what claim 1 says"),
])
def test_loose_ends_of_a_paper_are_errors(changes, says):
    with pytest.raises(UserError, match=says):
        parse(WHOLE | changes, "mine", "mine.toml")


def test_a_paper_without_claims_is_a_paper():
    assert read().claims == () and read().link == "" and read(arxiv="2503.01905").link.endswith("2503.01905")
    assert read().stage in STAGES
