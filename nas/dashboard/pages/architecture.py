"""Architecture: one subnet block by block beside its teacher, and what the front agrees on."""

from __future__ import annotations

from nas.dashboard.agreement import agreement_figure
from nas.dashboard.app import Ask, Shown
from nas.dashboard.candidates import ShownCandidate, find, of_model, of_trial
from nas.dashboard.formats import format_share
from nas.dashboard.pages.front import drawing, explain
from nas.dashboard.studies import Study
from nas.engine.pareto import knee, spread
from nas.reports.drawing import describe_block
from nas.reports.tables import describe
from search_spaces.subnet import SubnetConfig

MOST_CARDS = 12


def show(ask: Ask) -> Shown:
    """One candidate of the first chosen study, the front's others, and the heat map of their choices."""
    study, view = ask.studies[0], ask.view
    teacher = study.teacher
    pinned = [found for pin in view.pins if pin.study == study.key and (found := find(pin, ask.snapshot.studies))]
    candidate = pinned[-1] if pinned else _knee(study)
    members = [subnet for index in study.trials.front if (subnet := study.subnet(int(index))) is not None]
    return Shown(
        {
            "study": study,
            "candidate": candidate,
            "picture": candidate and drawing(candidate.subnet, teacher, f"Architecture of {candidate.title}"),
            "teacher": drawing(teacher, teacher, "Architecture of the teacher"),
            "blocks": candidate and candidate.subnet and _blocks(candidate.subnet, teacher),
            "facts": [(name, candidate.text(name)) for name in candidate.numbers] if candidate else [],
            "cards": [(card, drawing(card.subnet, teacher, card.title)) for card in _cards(study)],
            "members": len(members),
            "explained": explain(study),
            "describe": describe,
            "card_link": lambda card: view.link(pin=str(card.pin)),
        },
        {"agreement": agreement_figure(members)},
    )


def _knee(study: Study) -> ShownCandidate | None:
    """The best compromise of the front."""
    front = study.trials.front
    return of_trial(study, int(front[knee(study.trials.losses[front])])) if front.size else None


def _cards(study: Study) -> list[ShownCandidate]:
    """Exported models once each, then members of the front, spread along it."""
    cards = []
    seen = set()
    for index, model in enumerate(study.report.models if study.report else ()):
        if model.role == "front" and model.name not in seen:
            seen.add(model.name)
            cards.append(of_model(study, index, model))
    front = study.trials.front
    if front.size:
        chosen = sorted(spread(study.trials.losses[front], MOST_CARDS), key=lambda i: study.trials.losses[front][i, -1])
        cards += [of_trial(study, int(front[i])) for i in chosen]
    return cards


def _blocks(subnet: SubnetConfig, teacher: SubnetConfig | None) -> list[tuple[str, str]]:
    """Each block in words, and what of the teacher's it keeps."""
    rows = []
    for index, block in enumerate(subnet.blocks):
        full = teacher.blocks[index] if teacher is not None and index < len(teacher.blocks) else None
        kept = ""
        if full is not None and not block.skipped:
            heads, ffn = block.heads / max(full.heads, 1), block.ffn / max(full.ffn, 1)
            kept = f"{format_share(heads)} of the heads, {format_share(ffn)} of the FFN"
        rows.append((describe_block(index, block), kept))
    if teacher is not None and subnet.hidden_size != teacher.hidden_size:
        rows.append(
            (f"hidden size {subnet.hidden_size}", f"{format_share(subnet.hidden_size / teacher.hidden_size)} of it")
        )
    return rows
