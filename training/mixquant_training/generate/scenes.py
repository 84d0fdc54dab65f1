"""Single conversations: one user request, and the right first answer (a call, several calls, a question, a refusal)."""

from __future__ import annotations

from mixquant_training.generate import talk
from mixquant_training.generate.asking import ask
from mixquant_training.generate.catalog import Archetype, expand, load
from mixquant_training.generate.compose import other_action, other_quantity, random_archetype
from mixquant_training.generate.several import concatenate, split
from mixquant_training.generate.toolbox import KNOWLEDGE, Scene, Toolbox, called, nearest
from mixquant_training.generate.tools import Tool
from mixquant_training.generate.values import draw

__all__ = [
    "hinted",
    "multiple",
    "near_miss",
    "no_fit",
    "parallel",
    "parallel_mixed",
    "question_back",
    "single",
]


def _with(box: Toolbox, targets: list[Archetype], count: int) -> tuple[list[Tool], list[Tool]]:
    """Tools of the targets, and all tools in random order."""
    tools = box.tools([*targets, *box.distractors(targets, count)])
    shown = list(tools)
    box.rng.shuffle(shown)
    return tools[: len(targets)], shown


def single(box: Toolbox) -> Scene:
    """One tool, which fits."""
    archetype = box.archetype()
    (tool,), shown = _with(box, [archetype], 0)
    asked = ask(archetype, box.rng, held=box.held)
    messages = [
        *box.opening(),
        {"role": "user", "content": box.dressed(asked.question)},
        called([tool.call(asked.arguments)]),
    ]
    return Scene("single", shown, messages)


def multiple(box: Toolbox) -> Scene:
    """Two to seven tools, one of which fits."""
    archetype = box.archetype()
    (tool,), shown = _with(
        box, [archetype], box.rng.choice([1, 1, 2, 2, 3, 3, 4, 6] if box.held else [1, 1, 2, 2, 3, 3, 4, 5, 6, 7])
    )
    asked = ask(archetype, box.rng, held=box.held)
    messages = [
        *box.opening(),
        {"role": "user", "content": box.dressed(asked.question)},
        called([tool.call(asked.arguments)]),
    ]
    return Scene("multiple", shown, messages)


def parallel(box: Toolbox) -> Scene:
    """The same tool, two to five times."""
    rng = box.rng
    count = rng.choice([2, 2, 2, 3, 3, 4, 5])
    for _ in range(30):
        archetype = box.archetype()
        roll = rng.random()
        lists, one_list = (0.7, 0.45) if box.held else (0.58, 0.38)
        if roll < lists:
            found = split(box, archetype, count, 1 if roll < one_list else 2)
            if found is None:
                continue
            question, calls = found
        else:
            asked = [ask(archetype, rng, held=box.held, optional=0.25) for _ in range(min(count, 3 if box.held else 5))]
            question, calls = concatenate([one.question for one in asked], box), [one.arguments for one in asked]
        if len({str(call) for call in calls}) == len(calls):
            break
    (tool,), shown = _with(box, [archetype], rng.choice([0, 0, 1, 2, 3]))
    messages = [
        *box.opening(),
        {"role": "user", "content": box.dressed(question)},
        called([tool.call(call) for call in calls]),
    ]
    return Scene("parallel", shown, messages)


def parallel_mixed(box: Toolbox) -> Scene:
    """Two or three different tools in one request, perhaps one of them twice."""
    rng = box.rng
    first = box.archetype()
    targets = [first, *box.distractors([first], rng.choice([1, 1, 2]))]
    tools, shown = _with(box, targets, rng.choice([0, 0, 1, 2]))
    order = list(range(len(targets))) + ([rng.randrange(len(targets))] if rng.random() < 0.2 else [])
    asked = [ask(targets[index], rng, held=box.held, optional=0.25) for index in order]
    calls = [tools[index].call(one.arguments) for index, one in zip(order, asked, strict=True)]
    question = concatenate([one.question for one in asked], box)
    return Scene(
        "parallel_mixed", shown, [*box.opening(), {"role": "user", "content": box.dressed(question)}, called(calls)]
    )


def near_miss(box: Toolbox) -> Scene:
    """Training only: the tool's parameters fit the request word for word, but it does something else."""
    rng = box.rng
    roll = rng.random()
    if roll < 0.28:
        shown, meant = other_action(rng)
    elif roll < 0.55:
        shown, meant = other_quantity(rng)
    else:
        meant = rng.choice(load(held=False))
        shown = rng.choice(nearest(meant))
    tools = box.tools([shown, *box.distractors([meant, shown], rng.choice([0, 0, 0, 1, 2]))])
    rng.shuffle(tools)
    asked = ask(meant, rng, held=False)
    if meant.key in KNOWLEDGE:
        return near_miss(box)
    return _declined("near_miss", box, tools, asked.question)


def _declined(kind: str, box: Toolbox, tools: list[Tool], question: str) -> Scene:
    """A request that ends with the tools at hand being refused."""
    said = talk.refuse(tools, box.rng)
    return Scene(
        kind,
        tools,
        [
            *box.opening(),
            {"role": "user", "content": box.dressed(question)},
            {"role": "assistant", "content": said},
        ],
    )


def no_fit(box: Toolbox) -> Scene:
    """A request that none of the tools can serve; often a near miss."""
    rng = box.rng
    if not box.held and rng.random() < 0.5:
        return near_miss(box)
    archetype = box.archetype()
    while archetype.key in KNOWLEDGE:
        archetype = box.archetype()
    others = box.distractors([archetype], rng.choice([1, 1, 1, 2, 3, 4]))
    tools = box.tools(others or [random_archetype(rng, held=box.held)])
    asked = ask(archetype, rng, held=box.held)
    return _declined("no_fit", box, tools, asked.question)


_VAGUE = {
    "city": ["there", "my town", "that place", "somewhere warm", "the usual place"], "person": ["someone", "a friend", "him", "them", "my colleague"],
    "date": ["some day", "soon", "that day", "one of these days"], "time": ["some time", "later", "then"], "number": ["some", "a few", "x", "n", "a certain number of", "a bit"],
    "id": ["it", "mine", "that one", "my old one"], "text": ["something", "it", "that", "this thing", "one"],
}  # fmt: skip
_VAGUE_AS = {"country": "city", "landmark": "city", "street": "city", "first": "person", "last": "person", "int": "number", "num": "number", "float": "number",
             "money": "number", "percent": "number", "amount": "number", "datetime": "date", "weekday": "date"}  # fmt: skip


def hinted(box: Toolbox, archetype: Archetype) -> tuple[str, str] | None:
    """A required parameter that the question only hints at, and the question; none where no question allows it."""
    rng = box.rng
    plain = expand(rng.choice(archetype.questions), rng, 0.15)
    names = [
        param.names[0]
        for param in archetype.params
        if param.required and param.kind.name not in {"obj", "bool", "enum"}
    ]
    named = [name for name in names if plain.count("{" + name + "}") == 1]
    if not named:
        return None
    missing = rng.choice(named)
    kind = archetype.param(missing).kind
    look = kind.args if kind.name == "text" else kind.name
    hint = rng.choice(_VAGUE.get(_VAGUE_AS.get(look, look), _VAGUE["text"]))
    return missing, ask(archetype, rng, held=False, template=plain.replace("{" + missing + "}", hint)).question


def vague(box: Toolbox) -> Scene:
    """Training only: a required value is hinted at, but not said; ask for it."""
    rng = box.rng
    found = None
    while found is None:
        archetype = box.archetype()
        found = hinted(box, archetype)
    missing, question = found
    (tool,), shown = _with(box, [archetype], rng.choice([0, 0, 0, 1, 2]))
    text = talk.ask_back(archetype, missing, tool, rng)
    return Scene(
        "vague",
        shown,
        [
            *box.opening(),
            {"role": "user", "content": box.dressed(question)},
            {"role": "assistant", "content": text},
        ],
    )


def question_back(box: Toolbox) -> Scene:
    """A required value is missing: ask for it; often the user then gives it and the call follows."""
    rng = box.rng
    if not box.held and rng.random() < 0.4:
        return vague(box)
    archetype = box.archetype()
    while not archetype.asks:
        archetype = box.archetype()
    missing, template = rng.choice(archetype.asks)
    param = missing.split(".")[0]
    (tool,), shown = _with(box, [archetype], rng.choice([0, 0, 1, 2, 3]))
    asked = ask(archetype, rng, held=box.held, template=template)
    text = talk.ask_back(archetype, param, tool, rng)
    messages = [
        *box.opening(),
        {"role": "user", "content": box.dressed(asked.question)},
        {"role": "assistant", "content": text},
    ]
    required = {one.names[0] for one in archetype.params if one.required}
    if required - set(asked.arguments) == {param} and archetype.param(param).kind.name != "obj" and rng.random() < 0.6:
        surface, value = draw(archetype.param(param).kind, rng, held=box.held)
        reply = rng.choice(["{}", "{}", "{}.", "{} please", "It's {}.", "Use {}.", "oh, {}"]).format(surface)
        both = {**asked.arguments, param: value}
        ordered = {one.names[0]: both[one.names[0]] for one in archetype.params if one.names[0] in both}
        messages += [{"role": "user", "content": reply}, called([tool.call(ordered)])]
    return Scene("question_back", shown, messages)
