"""Archetypes put together at random: verbs, things and attributes, or a quantity and its inputs.

They make schemas that nobody wrote by hand, so that reading the schema is the only way to the right call. The held-out
side has its own things, attributes and phrasings.
"""

from __future__ import annotations

import functools
import random

from mixquant_training.generate.attributes import Attribute, attribute, listed
from mixquant_training.generate.attributes import either as _either
from mixquant_training.generate.catalog import Archetype, Param
from mixquant_training.generate.values import parse
from mixquant_training.generate.words import CATALOG, some

__all__ = ["action", "other_action", "other_quantity", "quantity", "random_archetype"]

_HEADS = {
    False: "invoice shipment sensor patient vehicle warehouse contract campaign lesson recipe playlist machine subscription ticket survey dataset report meeting property policy claim route device battery garden aquarium exhibit parcel voucher membership booking project budget channel camera printer workspace document signature auction orchard vineyard turbine pump valve greenhouse locker elevator badge visitor supplier donor volunteer trial experiment sample telescope satellite antenna drone tractor ferry bakery kitchen studio podcast newsletter forum mailbox backup cluster container pipeline dashboard alarm schedule roster shift payroll loan deposit wallet coupon catalog collection archive inspection permit license certificate exam classroom scholarship tournament league stadium".split(),
    True: "beehive kiln loom canoe trophy ledger quiver harness sculpture manuscript lighthouse sawmill brewery falcon choir puppet lantern compass anvil tapestry".split(),
}  # fmt: skip
_MODIFIERS = {
    False: ["customer", "daily", "regional", "student", "medical", "solar", "marine", "digital", "public", "monthly", "mobile", "remote", "internal", "guest", "fleet", "office", "school", "family", "city", "museum", "hotel", "airport", "farm", "retail", "cloud", "legacy", "training", "research", "charity", "sports"],
    True: ["alpine", "antique", "nocturnal", "coastal", "royal", "wooden"],
}  # fmt: skip
_VERBS = {
    verb: said.split("|")
    for verb, _, said in (line.partition(": ") for line in (CATALOG / "verbs.txt").read_text().splitlines())
}
"""Verb → ways to say it."""
_OTHER_THINGS = {
    thing: said.split("|")
    for thing, _, said in (line.partition(": ") for line in (CATALOG / "things.txt").read_text().splitlines())
}
"""Thing → other words for it. Training only."""
_HELD_VERBS = {"polish": ["polish", "give a shine to"], "appraise": ["appraise", "put a value on"], "loan_out": ["lend out", "loan out"], "tally": ["tally", "count up"], "restore": ["restore", "bring back"]}  # fmt: skip
# name, kind, description, phrases
_ATTRIBUTES = [
    ("priority", "enum(low|medium|high|urgent)", "Priority", ["with {v} priority", "{v} priority", "priority {v}"]),
    ("status", "enum(active|inactive|pending|archived)", "Status", ["with status {v}", "that is {v}", "status {v}"]),
    ("owner", "person", "Person in charge", ["owned by {v}", "for {v}", "{v} is in charge"]),
    ("region", "country", "Region", ["in {v}", "for the {v} region", "based in {v}"]),
    ("site", "city", "Site", ["at the {v} site", "in {v}", "in our {v} branch"]),
    ("start_date", "date", "First day, YYYY-MM-DD", ["starting {v}", "from {v} on", "beginning on {v}"]),
    ("due_date", "date", "Due date, YYYY-MM-DD", ["due {v}", "due on {v}", "by {v}"]),
    ("start_time", "time", "Start time, HH:MM", ["at {v}", "starting at {v}"]),
    ("quantity", "int(1-900)", "How many", ["quantity {v}", "{v} of them", "{v} units"]),
    ("limit", "int(1-100)", "Most results", ["at most {v}", "no more than {v} results", "limit {v}"]),
    ("budget", "money", "Budget", ["with a budget of {v}", "for at most {v}", "budget {v}"]),
    ("price", "money", "Price", ["priced at {v}", "costing {v}", "at {v}"]),
    ("color", "color", "Colour", ["in {v}", "coloured {v}", "{v} in color"]),
    ("material", "material", "Material", ["made of {v}", "in {v}"]),
    ("tags", "list(label,1-3)", "Tags", ["tagged {v}", "with the tags {v}", "tags: {v}"]),
    ("members", "list(first,2-4)", "People involved", ["together with {v}", "for {v}", "members {v}"]),
    ("title", "topic", "Title", ["called \"{v}\"", "titled {v}", "with the title {v}"]),
    ("name", "company", "Name", ["named {v}", "called {v}", "by the name of {v}"]),
    ("code", "id(K)", "Code", ["{v}", "with code {v}", "number {v}"]),
    ("reference", "id(REF)", "Reference number", ["under reference {v}", "reference {v}"]),
    ("email", "email", "Contact address", ["contact {v}", "with {v} as contact", "and notify {v}"]),
    ("phone", "phone", "Contact number", ["phone {v}", "reachable at {v}"]),
    ("rating", "float(1-5,1)", "Rating", ["rated {v}", "with a rating of {v}", "rating {v}"]),
    ("threshold", "float(0.05-0.95,2)", "Threshold", ["with a threshold of {v}", "threshold {v}"]),
    ("temperature", "int(-30-90)", "Temperature in Celsius", ["at {v} degrees", "kept at {v} °C"]),
    ("weight", "num", "Weight in kilograms", ["weighing {v} kg", "of {v} kilograms", "weight {v} kg"]),
    ("duration", "int(5-600)", "Duration in minutes", ["for {v} minutes", "lasting {v} minutes", "{v} min long"]),
    ("language", "code(langcode)", "Two-letter language code", ["in {v}", "with {v} as its language"]),
    ("currency", "code(currency)", "Currency code", ["in {v}", "with amounts in {v}"]),
    ("format", "enum(csv=CSV|json=JSON|pdf=PDF|xml=XML)", "Format", ["as {v}", "in {v} format"]),
    ("frequency", "enum(daily|weekly|monthly|yearly)", "How often", ["{v}", "on a {v} basis"]),
    ("category", "enum(standard|premium|basic|custom)", "Category", ["of the {v} kind", "category {v}", "{v} category"]),
    ("notify", "bool(and notify everyone/with notifications|without notifying anyone/with no notifications)", "Whether to send notifications", ["{v}"]),
    ("public", "bool(visible to everyone/publicly visible|kept private)", "Whether everyone can see it", ["{v}"]),
    ("note", "sentence", "Note", ["with the note \"{v}\"", "note: {v}"]),
    ("url", "url", "Link", ["linked to {v}", "with the link {v}"]),
    ("capacity", "int(2-500)", "Capacity", ["with room for {v}", "capacity {v}", "for up to {v}"]),
    ("version", "version", "Version", ["version {v}", "in version {v}"]),
    ("location", "obj(city:city;street:street)", "Address", ["at {v.street} in {v.city}", "located at {v.street}, {v.city}"]),
    ("range", "obj(min:int(0-40);max:int(41-300))", "Range of values", ["between {v.min} and {v.max}", "from {v.min} to {v.max}"]),
    ("sort_by", "enum(name|date|price|size)", "Field to sort by", ["sorted by {v}", "ordered by {v}"]),
]  # fmt: skip
_HELD_ATTRIBUTES = [
    ("keeper", "person", "Person who looks after it", ["{v} looks after it", "kept by {v}"]),
    ("moisture_percent", "int(3-97)", "Moisture in percent", ["moisture standing at {v} percent", "moist to {v}%"]),
    ("era", "enum(bronze|roman|medieval|modern)", "Era", ["from the {v} era", "dated {v}"]),
    ("shelf_code", "id(SH)", "Code of the shelf", ["on shelf {v}", "shelf is {v}"]),
    ("opening_day", "date", "Day it opens, YYYY-MM-DD", ["opening its doors {v}", "which opens on {v}"]),
    ("fragile", "bool(handle with care|sturdy enough)", "Whether it is fragile", ["{v}"]),
    ("asking_price", "money", "Asking price", ["they ask {v} for it", "asking price {v}"]),
    ("origin_town", "city", "Town of origin", ["that came out of {v}", "originally {v}-made"]),
    ("motifs", "list(animal,1-3)", "Motifs", ["showing {v}", "motifs being {v}"]),
]  # fmt: skip
_FRAMES = {
    False: ["{do} {thing} {rest}", "(please|can you|could you) {do} {thing} {rest}(|?)", "i (need|want|would like) to {do} {thing} {rest}",
            "{do} {thing}: {rest}", "{do} {thing}, {rest}", "(time to|let's) {do} {thing} {rest}", "i'd like you to {do} {thing} {rest}",
            "is it possible to {do} {thing} {rest}?", "we have to {do} {thing} {rest}", "{rest}: {do} {thing}",
            "any chance you can {do} {thing} {rest}?", "my boss told me to {do} {thing}, {rest}", "{thing}, {rest}: {do} that for me", "next job is to {do} {thing} {rest}",
            "{do} {thing}. details: {rest}", "we are supposed to {do} {thing} today, {rest}", "{first} wants us to {do} {thing} {rest}", "make sure to {do} {thing} {rest}",
            "don't forget to {do} {thing} {rest}", "there's {thing} here, {rest}, and we must {do} that", "kindly {do} {thing} {rest}", "{rest}. please {do} {thing}", "it would help to {do} {thing} {rest}",
            "somebody had better {do} {thing}, {rest}", "{thing} ({rest}): {do}", "{thing} - {do}, {rest}", "to do: {do} {thing}. {rest}", "{rest} - {do} {thing}", "why don't you {do} {thing} {rest}", "could {thing} be dealt with? {do}, {rest}",
            "i was hoping you'd {do} {thing}, {rest}", "we'll have to {do} {thing}; {rest}", "what about {thing}, {rest}? {do} please", "{do} {thing} will you, {rest}", "you might {do} {thing} {rest}", "{thing} please: {do}, {rest}", "{do}: {thing}, {rest}",
            "nobody has managed to {do} {thing} yet, {rest}", "it falls to you to {do} {thing} {rest}", "want to {do} {thing}. {rest}", "would it be ok to {do} {thing} {rest}?", "the plan is to {do} {thing} {rest}", "off you go, {do} {thing} {rest}", "somehow {do} {thing} {rest}",
            "how about you {do} {thing} {rest}", "and now {do} {thing} {rest}", "can we {do} {thing} {rest}?", "your task: {do} {thing}. {rest}", "go and {do} {thing} {rest}", "we ought to {do} {thing}, {rest}"],
    True: ["would you mind if we {do} {thing} {rest}", "someone should {do} {thing}; {rest}", "go ahead and {do} {thing} {rest}"],
}  # fmt: skip


def _thing(rng: random.Random, held: bool) -> tuple[str, str]:
    """A noun with its modifiers, and the noun."""
    head = some(rng, 1, 1) if not held and rng.random() < 0.4 else rng.choice(_HEADS[held])
    if rng.random() < 0.6:
        modifier = some(rng, 1, 1) if not held and rng.random() < 0.4 else rng.choice(_MODIFIERS[held])
        return f"{modifier} {head}", head
    return head, head


@functools.cache
def _alike() -> tuple[tuple[Attribute, ...], ...]:
    """Attributes of training in groups whose values look alike: places, people, dates, numbers."""
    looks = {
        "city": "place",
        "country": "place",
        "landmark": "place",
        "street": "place",
        "first": "person",
        "last": "person",
        "id": "code",
        "bool": "",
        "enum": "choice",
    }
    groups: dict[str, list[Attribute]] = {}
    for one in (*_ATTRIBUTES, *listed()):
        kind = parse(one[1])
        look = kind.args if kind.name == "text" else kind.name
        look = looks.get(look, "number" if look in {"int", "num", "float", "percent"} else look)
        groups.setdefault(look, []).append(one)
    return tuple(tuple(group) for look, group in groups.items() if look and len(group) > 2)


def _attributes(rng: random.Random, held: bool) -> list[Attribute]:
    count = [1, 2, 2, 3, 3, 4, 5]
    if held:
        return rng.sample(_HELD_ATTRIBUTES + _ATTRIBUTES[:8], k=rng.choice(count))
    drawn = [rng.choice(_ATTRIBUTES) if rng.random() < 0.4 else attribute(rng) for _ in range(rng.choice([*count, 6]))]
    if rng.random() < 0.4:  # several values of one kind, which only their phrases tell apart
        alike = rng.choice(_alike())
        drawn = [*drawn[:2], *rng.sample(alike, k=min(len(alike), rng.choice([2, 2, 3])))]
        rng.shuffle(drawn)
    return list({one[0]: one for one in drawn}.values())


def action(
    rng: random.Random, *, held: bool, verb: str | None = None, noun: tuple[str, str] | None = None, chosen: list[Attribute] | None = None
) -> Archetype:  # fmt: skip
    """A verb done to a thing, with one to five attributes; each of the three can be given."""
    verbs = _HELD_VERBS if held else _VERBS
    verb = verb or rng.choice(sorted(verbs))
    thing, head = noun or _thing(rng, held)
    chosen = chosen or _attributes(rng, held)
    required = max(1, rng.randint(1, len(chosen)))
    snake = thing.replace(" ", "_")
    params, parts = [], []
    for index, (name, kind, description, phrases) in enumerate(chosen):
        shown = (name, f"{head}_{name}", f"{name}_value") if rng.random() < 0.4 else (name,)
        params.append(Param(shown, parse(kind), description, index < required))
        phrase = _either(phrases).replace("{v", "{" + name)
        parts.append(phrase if index < required else f"[{phrase}]")
    every = list(parts)

    def question(frame: str, parts: list[str]) -> str:
        rng.shuffle(parts)
        rest = rng.choice([" ", ", ", " "]).join(parts).replace("[,", "[")
        called = thing
        if not held and head in _OTHER_THINGS and rng.random() < 0.3:
            called = thing[: -len(head)] + rng.choice(_OTHER_THINGS[head])
        article = "" if verb == "list" else rng.choice(["the ", "a ", "this ", "our "])
        plural = f"{called}s" if verb in {"list", "search", "compare"} else article + called
        text = frame.replace("{first}", "my colleague") if "{first}" in frame else frame
        return text.replace("{do}", _either(verbs[verb])).replace("{thing}", plural).replace("{rest}", rest)

    questions = [question(frame, parts) for frame in rng.sample(_FRAMES[held], k=min(3, len(_FRAMES[held])))]
    names = (f"{verb}_{snake}", f"{snake}_{verb}", f"{verb}_{snake}s" if verb == "list" else f"{verb}_{head}")
    text = f"{verb.replace('_', ' ').capitalize()} {'all ' if verb == 'list' else 'a '}{thing}{'s' if verb == 'list' else ''}"
    asks = [
        (
            params[0].names[0],
            rng.choice([f"{verb.replace('_', ' ')} a {thing}", f"please {verbs[verb][0]} the {thing}"]),
        )
    ]
    if not held and required > 1:  # all but one of the values are said
        missing = rng.randrange(required)
        rest = [part for index, part in enumerate(every[:required]) if index != missing]
        asks = [(params[missing].names[0], question(rng.choice(_FRAMES[held]), rest))]
    status = rng.choice(["done", "ok", "success", "completed", "queued"])
    return Archetype(
        names,
        text,
        head,
        params,
        questions,
        asks,
        [("status", parse(f"enum({status})")), (f"{head}_id", parse("id(N)"))],
        "",
    )


_QUANTITIES = {
    False: ["drag force", "heat loss", "fuel consumption", "water flow", "sound level", "lens power", "pump power", "beam deflection", "reaction rate", "evaporation", "wind load", "battery life", "growth rate", "signal strength", "torque", "buoyancy", "spring force", "orbital period", "dilution", "payback time", "profit margin", "customer lifetime value", "inventory turnover", "heart rate zone", "body fat", "dosage", "brick count", "fence cost", "slope", "escape speed", "light intensity", "soil acidity", "cutting speed", "gear ratio"],
    True: ["keel pressure", "glaze thickness", "thread tension", "honey yield", "bell resonance", "rope stretch"],
}  # fmt: skip
_INPUTS = [
    ("mass", "num", "kg", "Mass in kilograms"), ("length", "num", "m", "Length in metres"), ("height", "num", "m", "Height in metres"),
    ("speed", "num", "m/s", "Speed in m/s"), ("pressure", "num", "Pa", "Pressure in pascal"), ("area", "num", "m2", "Area in square metres"),
    ("volume", "num", "liters", "Volume in litres"), ("temperature", "int(-40-900)", "degrees", "Temperature in Celsius"),
    ("power", "num", "watts", "Power in watts"), ("distance", "num", "km", "Distance in kilometres"), ("angle", "int(1-179)", "degrees", "Angle in degrees"),
    ("density", "num", "kg/m3", "Density in kg/m3"), ("voltage", "num", "V", "Voltage in volts"), ("current", "float(0.1-40)", "A", "Current in ampere"),
    ("frequency", "num", "Hz", "Frequency in hertz"), ("age", "int(1-99)", "years", "Age in years"), ("cost", "money", "", "Cost"), ("revenue", "money", "", "Revenue"),
    ("rate", "percent", "", "Rate in percent"), ("efficiency", "pctdec", "", "Efficiency as a decimal"), ("count", "int(1-900)", "", "Number of pieces"),
    ("time", "int(1-900)", "seconds", "Time in seconds"), ("radius", "num", "cm", "Radius in centimetres"), ("coefficient", "float(0.01-3,2)", "", "Coefficient"),
]  # fmt: skip
_OPTIONS = [
    ("unit", "enum(metric|imperial)", "Unit system", ["in {v} units", "using {v} units"]),
    ("precision", "int(0-8)", "Decimals", ["to {v} decimals", "with {v} decimal places"]),
    ("method", "enum(simple|exact|empirical)", "Method", ["with the {v} method", "using the {v} formula"]),
    ("material", "material", "Material", ["for {v}", "if it is made of {v}"]),
    ("verbose", "bool(with all steps/showing the steps|without steps)", "Show intermediate steps", ["{v}"]),
]  # fmt: skip


def quantity_inputs(rng: random.Random) -> list[tuple[str, str, str, str]]:
    """Name, kind, unit and description of one to four inputs."""
    return rng.sample(_INPUTS, k=rng.choice([1, 2, 2, 3, 3, 4]))


_MEASURES = [
    "rate",
    "index",
    "ratio",
    "score",
    "factor",
    "load",
    "yield",
    "cost",
    "length",
    "loss",
    "time",
    "strength",
    "level",
    "share",
]


def quantity_name(rng: random.Random) -> str:
    """A quantity of training's; often a made-up one."""
    return rng.choice(_QUANTITIES[False]) if rng.random() < 0.6 else f"{some(rng, 1, 1)} {rng.choice(_MEASURES)}"


def _told_by_unit(inputs: list[tuple[str, str, str, str]]) -> set[str]:
    """Inputs that their unit alone tells from the others."""
    units = [
        unit or ("" if kind.startswith(("int", "float")) else kind.replace("pctdec", "percent"))
        for _, kind, unit, _ in inputs
    ]
    return {one[0] for one, unit in zip(inputs, units, strict=True) if unit and units.count(unit) == 1}


def quantity(
    rng: random.Random, *, held: bool, name: str | None = None, inputs: list[tuple[str, str, str, str]] | None = None
) -> Archetype:
    """A quantity computed from two to four inputs with units, and perhaps an option; name and inputs can be given."""
    name = name or (rng.choice(_QUANTITIES[held]) if held else quantity_name(rng))
    inputs = inputs or quantity_inputs(rng)
    params, said = [], []
    alone = set() if held or rng.random() < 0.65 else _told_by_unit(inputs)
    for key, kind, unit, description in inputs:
        params.append(Param((key, f"{key}_value", f"object_{key}"), parse(kind), description, True))
        tail = f" {unit}" if unit else ""
        forms = (
            [f"{key} being {{{key}}}{tail}", f"{key} {{{key}}}{tail}", f"the {key} at {{{key}}}{tail}"]
            if not held
            else [f"{key} (currently {{{key}}}{tail})"]
        )
        said.append((f"{{{key}}}{tail}",) * 2 if key in alone else (_either(forms), f"{key} = {{{key}}}{tail}"))
    told = rng.sample(said, len(said)) if not held and rng.random() < 0.5 else said
    long, short = " and ".join(a for a, _ in told), ", ".join(b for _, b in told)
    long = long.replace(" and ", ", ", len(said) - 2) if len(said) > 2 else long
    option = ""
    if rng.random() < 0.6:
        key, kind, description, phrases = rng.choice(_OPTIONS)
        params.append(Param((key,), parse(kind), description, False))
        option = f"[ {_either(phrases)}]".replace("{v}", "{" + key + "}")
    if held:
        questions = [f"work out our {name} given {long}{option}", f"{name}? we have {short}{option}"]
    else:
        questions = [
            f"(what is|calculate|compute|find|determine|work out) the {name} (for|with|given) {long}{option}",
            f"{name} for {short}{option}",
            f"(given|with|assuming) {long}, (what is|find|tell me) the {name}{option}(|?)",
            f"i need the {name}{option}. (the values are|we have|data:) {short}",
            f"{long}: (and|so) what's the {name}{option}?",
            f"(can you get|could you figure out|help me with) the {name}[ of this thing], {short}{option}",
            f"how (big|large|high) is the {name} (if|when|assuming) {long}{option}?",
            f"my homework asks for the {name}{option}: {short}",
            f"{short}. {name}{option}?",
            f"take {short} and (give|get|tell) me the {name}{option}",
        ]
    noun = name.replace(" ", "_")
    names = (f"calculate_{noun}", noun, f"compute_{noun}", f"{noun}_calculator", f"get_{noun}", f"estimate_{noun}")
    asks = [(params[0].names[0], f"what is the {name}?")]
    if not held and len(said) > 1:  # one input is not told
        missing = rng.randrange(len(said))
        rest = ", ".join(b for index, (_, b) in enumerate(said) if index != missing)
        form = rng.choice(
            [
                "(what is|calculate|find) the {n} (for|with|given) {t}(|?)",
                "{n} for {t}",
                "{t}. what's the {n}?",
                "i need the {n}, we have {t}",
            ]
        )
        asks = [(params[missing].names[0], form.replace("{n}", name).replace("{t}", rest))]
    return Archetype(
        names,
        f"Calculate the {name}",
        "calc",
        params,
        questions,
        asks,
        [("result", parse("num"))],
        "The " + name + " is {result}.",
    )


def random_archetype(rng: random.Random, *, held: bool) -> Archetype:
    """An action or a quantity."""
    return action(rng, held=held) if rng.random() < 0.65 else quantity(rng, held=held)


def other_action(rng: random.Random) -> tuple[Archetype, Archetype]:
    """Two actions of training with the same attributes, that differ in the verb or in the thing: neither does the other's work."""
    chosen, thing = _attributes(rng, False), _thing(rng, False)
    first, second = rng.sample(sorted(_VERBS), 2)
    if _VERBS[first][0].split()[0] in _ALIKE and _VERBS[second][0].split()[0] in _ALIKE:
        return other_action(rng)
    other = thing if rng.random() < 0.5 else _thing(rng, False)
    if other == thing:
        verbs = (first, second)
    else:
        verbs = (first, first)
        if other[1] in thing[0] or thing[1] in other[0]:
            return other_action(rng)
    return (
        action(rng, held=False, verb=verbs[0], noun=thing, chosen=chosen),
        action(rng, held=False, verb=verbs[1], noun=other, chosen=chosen),
    )


_ALIKE = set(
    "get list describe search track monitor inspect audit analyze log register create make build open update store keep start order rent book sort store verify validate test move send deliver share".split()
)


def other_quantity(rng: random.Random) -> tuple[Archetype, Archetype]:
    """Two quantities of training from the same inputs."""
    first, second = quantity_name(rng), quantity_name(rng)
    if set(first.split()) & set(second.split()):
        return other_quantity(rng)
    inputs = quantity_inputs(rng)
    return quantity(rng, held=False, name=first, inputs=inputs), quantity(rng, held=False, name=second, inputs=inputs)
