"""Search and objective: the loss is the sum of its terms, restarts do not disturb each other, only v moves."""

from dataclasses import asdict, fields, replace

import pytest
import torch
import torch.nn.functional as F

import main
from main import Scan, objective, pooled_objective, search
from Utils.encoder.corpus import embed_corpus, split
from Utils.encoder.measures import assimilation, similarity
from Utils.encoder.text_encoder import TextEncoder, in_batches, run_spliced
from Utils.found import show
from Utils.report.run import Run
from Utils.scan.finding import FEATURES, Finding
from Utils.scan.settings import SEARCH_SETTINGS, ScanConfig

NOUNS = ("dog", "cat", "car", "hat", "pig", "sun", "owl", "bee")
PROMPTS = [f"a {a} {b}" for a in ("red", "big", "old") for b in NOUNS]
CFG = ScanConfig(
    procedure="calibrated", prompts=len(PROMPTS), positions="attended", restarts=3, init="vocabulary", bound=True, batch=4,
    steps=12, gamma=0.3, landscape_points=5, landscape_radius=0.5, landscape_planes=2, landscape_prompts=2,
)  # fmt: skip


@pytest.fixture
def scan(tiny) -> Scan:
    corpus = embed_corpus(tiny, PROMPTS, None)
    generator = torch.Generator().manual_seed(0)
    fit, held_out = split(len(PROMPTS), 0.5, generator)
    return Scan(tiny, tiny, PROMPTS, corpus, corpus, fit, held_out, CFG, generator)


def test_the_loss_is_the_sum_of_its_terms(scan):
    v, rows = torch.randn(1, 1, scan.suspect.width), scan.fit[:4]
    loss, terms = objective(scan, v, rows)
    expected = -terms["assimilation"] + CFG.beta * terms["clean"] + CFG.gamma * terms["anchor"]
    torch.testing.assert_close(loss, expected)
    ids = scan.splice(rows)
    mask, features = scan.mask(ids), run_spliced(scan.suspect, v[0], ids)
    torch.testing.assert_close(terms["assimilation"][0], assimilation(features, mask).mean())
    clean = scan.corpus.features[rows, : ids.shape[1]].float()
    torch.testing.assert_close(terms["clean"][0], similarity(clean, features, mask).mean())


def test_the_anchor_against_itself_is_never_foreign(scan):
    _, terms = objective(scan, torch.randn(2, 1, scan.suspect.width), scan.fit[:4])
    torch.testing.assert_close(terms["anchor"], torch.ones(2))


def test_many_vectors_at_once_are_as_many_one_by_one(scan):
    v, rows = torch.randn(3, 1, scan.suspect.width), scan.fit[:4]
    together, _ = objective(scan, v, rows)
    torch.testing.assert_close(together, torch.cat([objective(scan, one[None], rows)[0] for one in v]))
    torch.testing.assert_close(main.loss_of_many(scan, rows, v, texts=4), together)


def test_the_search_lowers_the_loss_and_touches_no_weight(scan):
    before = {n: p.clone() for n, p in scan.suspect.model.named_parameters()}
    history = []
    places, losses = search(scan, lambda step, loss, terms: history.append(loss))
    assert torch.stack(history[-3:]).mean() < torch.stack(history[:3]).mean()
    assert (losses.diff() >= 0).all()
    assert not places.requires_grad
    for name, parameter in scan.suspect.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_a_bounded_search_stays_within_the_norms_of_tokens(scan):
    limit = scan.suspect.vocabulary.norm(dim=-1).max()
    fast = replace(scan, cfg=replace(CFG, lr=5.0))
    assert search(fast, lambda *step: None)[0].norm(dim=-1).max() <= limit * 1.0001
    loose = replace(scan, cfg=replace(CFG, lr=5.0, bound=False))
    assert search(loose, lambda *step: None)[0].norm(dim=-1).max() > limit


def test_one_seed_gives_one_search(scan):
    runs = [search(replace(scan, generator=torch.Generator().manual_seed(s)), lambda *step: None)[0] for s in (5, 5, 6)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_published_gates_stop_at_the_first_that_fails(scan):
    v = torch.randn(1, scan.suspect.width)
    paper = replace(scan, cfg=replace(ScanConfig(prompts=24, landscape_points=5), gate_assimilated=0.9999))
    assert set(main.published_gates(paper, v)[0]) == {"assimilated"}
    easy = replace(paper.cfg, gate_assimilated=-1.0, gate_one_target=-1.1, gate_foreign=1.1)
    assert set(main.published_gates(replace(paper, cfg=easy), v)[0]) == {"assimilated", "one_target", "foreign", "basin"}


def test_the_pooled_loss_is_the_assimilation_of_summaries_over_prompts(scan):
    v, rows = torch.randn(2, 1, scan.suspect.width), scan.fit[:4]
    loss, terms = pooled_objective(scan, v, rows)
    torch.testing.assert_close(loss, -terms["assimilation"] + CFG.gamma * terms["anchor"])
    pooled = run_spliced(scan.suspect, v[1], scan.splice(rows), TextEncoder.pooled)
    pairs = [F.cosine_similarity(a, b, dim=0) for a in pooled for b in pooled]
    torch.testing.assert_close(terms["assimilation"][1], torch.stack(pairs).mean())
    torch.testing.assert_close(terms["anchor"], torch.ones(2))  # the anchor against itself


def test_the_pooled_search_makes_summaries_alike(scan):
    history = []
    search(scan, lambda step, loss, terms: history.append(loss.min()), pooled_objective, 60)
    assert torch.stack(history[-10:]).mean() < torch.stack(history[:10]).mean()


@pytest.mark.parametrize(("tokens", "pooled", "kind"), [(0.4, 0.7, "feature"), (0.1, 0.9, "summary"), (0.0, 0.0, "feature")])
def test_v_is_the_token_witnesses_vector_unless_only_summaries_collapse(scan, monkeypatch, tokens, pooled, kind):
    values = dict.fromkeys(main.TOKENS, tokens) | dict.fromkeys(main.POOLED, pooled)
    monkeypatch.setattr(main, "witnesses", lambda _: values)
    finding = main.find_trigger(replace(scan, cfg=replace(CFG, pooled_steps=8)), Run())
    assert finding.kind == f"{kind} collapse"


def test_each_kind_of_witness_speaks_of_the_vector_where_it_is_strongest(scan, monkeypatch):
    strongest = iter([dict.fromkeys(main.TOKENS, 0.9) | dict.fromkeys(main.POOLED, 0.1)])
    rest = dict.fromkeys(main.TOKENS, 0.2) | dict.fromkeys(main.POOLED, 0.6)
    monkeypatch.setattr(main, "witnesses", lambda _: next(strongest, rest))
    finding = main.find_trigger(replace(scan, cfg=replace(CFG, pooled_steps=8)), Run())
    assert [finding.values[name] for name in main.TOKENS] == [0.9] * 3
    assert [finding.values[name] for name in main.POOLED] == [0.6] * 2


def sent_by(scan: Scan, v: torch.Tensor) -> torch.Tensor:
    """The mean summary of unseen prompts with v, (d,)."""
    return in_batches(scan.suspect, scan.splice(scan.held_out), TextEncoder.pooled, v).mean(dim=0)


def test_the_way_to_what_a_string_forces_is_a_cosine_from_clean_prompts(scan):
    v, rows = torch.randn(2, 1, scan.suspect.width), scan.fit[:4]
    clean, forced = scan.corpus.pooled.float().mean(dim=0), sent_by(scan, v[0])
    loss, terms = main.string_objective(scan, v, rows, forced)
    pooled = run_spliced(scan.suspect, v[1], scan.splice(rows), TextEncoder.pooled)
    near = torch.stack([F.cosine_similarity(one - clean, forced - clean, dim=0) for one in pooled]).mean()
    torch.testing.assert_close(loss, 1 - terms["string"])
    torch.testing.assert_close(terms["string"][1], near)
    assert main.forces(scan, v[0], forced) == pytest.approx(1.0, abs=1e-5)
    assert main.forces(scan, v[1], forced) < 0.9


def test_v_shows_what_a_proven_string_does_where_the_searches_pass_it_by(scan):
    cfg = replace(CFG, pooled_steps=60)

    def found(forced: torch.Tensor | None) -> Finding:
        again = replace(scan, cfg=cfg, generator=torch.Generator().manual_seed(0))
        return main.find_trigger(again, Run(), forced)

    usual = found(None)
    forced = sent_by(scan, 0.1 * torch.randn(1, scan.suspect.width, generator=torch.Generator().manual_seed(1)))
    assert main.forces(scan, usual.v, forced) < main.SHOWS
    shown = found(forced)
    assert main.forces(scan, shown.v, forced) > main.forces(scan, usual.v, forced) + 0.1
    of_v = main.witnesses(main.measure(scan, shown.v))
    kind = main.TOKENS if shown.kind == FEATURES else main.POOLED
    assert {name: shown.values[name] for name in kind} == {name: pytest.approx(of_v[name], abs=1e-5) for name in kind}
    the_same = found(sent_by(scan, usual.v))  # what the searches find is what the string does
    assert torch.equal(the_same.v, usual.v)
    assert the_same.values == usual.values


def test_v_stays_where_the_search_for_what_a_string_does_comes_no_nearer(scan, monkeypatch: pytest.MonkeyPatch):
    def found(forced: torch.Tensor | None) -> Finding:
        again = replace(scan, cfg=replace(CFG, pooled_steps=8), generator=torch.Generator().manual_seed(0))
        return main.find_trigger(again, Run(), forced)

    usual, near = found(None), iter([0.3, 0.2])
    monkeypatch.setattr(main, "forces", lambda *_: next(near))
    kept = found(torch.ones(scan.suspect.width))
    assert not list(near)
    assert torch.equal(kept.v, usual.v)
    assert {**kept.values, "basin": 0} == {**usual.values, "basin": 0}  # planes of the landscape are drawn after the search


@pytest.mark.parametrize(("near", "pooled"), [((0.5, 0.7), True), ((0.7, 0.5), False)])
def test_the_target_is_shown_from_the_vector_that_is_nearer_to_a_text(scan, monkeypatch: pytest.MonkeyPatch, near, pooled):
    nearness = iter(near)
    monkeypatch.setattr(show, "nearest_text", lambda *_: next(nearness))
    v, w = torch.randn(2, 1, scan.suspect.width)
    finding = Finding(v, FEATURES, {}, None, w)
    many = show.repeated(v, scan.suspect.context)
    assert torch.equal(show.clearest(scan, finding), w if pooled else many)
    assert torch.equal(show.clearest(scan, replace(finding, pooled_v=None)), many)
    assert torch.equal(show.clearest(replace(scan, anchor=None), finding), many)


def test_the_search_reads_what_the_calibration_is_tied_to_and_no_other_setting(tiny, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    read: set[str] = set()
    names = {field.name for field in fields(ScanConfig)}

    class Watched(ScanConfig):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    cfg = Watched(**asdict(replace(CFG, corpus=str(tmp_path / "prompts.txt"), pooled_steps=8)))
    read.clear()
    scan = main.prepare(tiny, tiny, cfg, 0, None)
    main.find_trigger(scan, Run())
    explains = {name for name in names if name.startswith("landscape_")}
    assert (read & names) - explains == set(SEARCH_SETTINGS)


def test_what_is_shown_from_another_vector_is_kept_under_a_name_of_its_own(scan, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(show, "nearest_text", lambda _anchor, pooled, _corpus: float(torch.allclose(pooled, of_w, atol=1e-5)))
    monkeypatch.setattr(show, "read_texts", lambda _pair, pooled: ([], [str(torch.allclose(pooled, of_w, atol=1e-5))]))
    v, w = torch.randn(2, 1, scan.suspect.width)
    run, of_w = Run(tmp_path), in_batches(scan.suspect, scan.spliced_ids(w), TextEncoder.pooled, w)
    run.on_step(0, torch.zeros(1), {})
    finding = Finding(v, FEATURES, {}, main.landscape_around(scan, v), w)
    found = show.show_found(scan, finding, main.layers_with_and_without(scan, v), run, show.Show(images=0))
    kept = {name: torch.load(tmp_path / file) for name, file in found["files"].items() if file.endswith(".pt")}
    assert torch.equal(kept["embedding"], v)
    assert torch.equal(kept["inversion"][show.INVERSION_TOKEN], v)
    assert torch.equal(kept["shown_embedding"], w)
    features = in_batches(scan.suspect, scan.spliced_ids(w), v=w)
    torch.testing.assert_close(kept["feature"], features.mean(dim=0, keepdim=True))
    assert found["times"] == 1
    assert any("Shown_Embedding.pt" in note for note in run.notes)
    assert run.notes[1] == "True"  # the words are of the same vector


def test_v_said_once_is_no_other_vector(scan, monkeypatch: pytest.MonkeyPatch, tmp_path):
    nearness = iter((0.1, 0.9))
    monkeypatch.setattr(show, "nearest_text", lambda *_: next(nearness))
    monkeypatch.setattr(show, "read_texts", lambda *_: ([], []))
    v, run = torch.randn(1, scan.suspect.width), Run(tmp_path)
    run.on_step(0, torch.zeros(1), {})
    finding = Finding(v, FEATURES, {}, main.landscape_around(scan, v), v)
    found = show.show_found(scan, finding, main.layers_with_and_without(scan, v), run, show.Show(images=0))
    assert found["times"] == 1
    assert "shown_embedding" not in found["files"]
    assert run.notes == []
