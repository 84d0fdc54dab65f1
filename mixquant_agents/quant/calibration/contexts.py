"""Agent conversations, made up from the tables below: system prompt, tool schemas, questions, calls, results, history.

Two sets share no domain, tool or sentence: ``"calibration"`` is what twins are rounded by, ``"measured"`` what fidelity
is measured on. The same seed gives the same conversations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Conversation", "conversations", "plain_texts"]

Split = Literal["calibration", "measured"]
Kind = Literal["question", "result", "turns"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a model is to answer.

    Attributes:
        kind: ``"question"``: a call is due; ``"result"``: a tool has answered; ``"turns"``: there is a history.
        messages: as chat templates take them, the system prompt first and the model's turn next.
        tools: function schemas, as chat templates take them.
    """

    kind: Kind
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Domain:
    """One trade: its system prompt, its tools ``(name, description, {argument: description})``, its scenes
    ``(question, tool, {argument: value}, result, answer)`` with ``{slots}``, and what fills slots."""

    system: str
    tools: tuple[tuple[str, str, dict[str, str]], ...]
    scenes: tuple[tuple[str, str, dict[str, str], str, str], ...]
    words: dict[str, tuple[str, ...]]


_RULES = {
    "calibration": (
        "Call a tool whenever the answer depends on data you do not have. Never guess numbers. When a result is empty, "
        "say so and offer one next step. Keep answers under eighty words unless the user wants more."
    ),
    "measured": (
        "You work step by step: decide what is missing, fetch it with one tool, then reply. Quote figures exactly as "
        "they were returned. If two tools would do, take the cheaper one. Be brief, polite and concrete."
    ),
}

_DOMAINS: dict[str, tuple[_Domain, ...]] = {
    "calibration": (
        _Domain(
            "You help the night desk of a hotel with rooms, guests and repairs.",
            (
                ("find_room", "Free rooms of a kind.", {"kind": "single, double or suite", "nights": "how many nights"}),
                ("guest_record", "What is known of a guest.", {"surname": "family name", "room": "room number"}),
                ("open_repair", "Tell the workshop of a defect.", {"room": "room number", "defect": "what is broken"}),
            ),
            (
                ("A couple at the door wants a {kind} for {n} nights. Have we got one?", "find_room", {"kind": "{kind}", "nights": "{n}"}, '{{"free": [{n}14, {n}22], "rate": {m}5, "breakfast": true}}', "Yes: rooms {n}14 and {n}22 are free at {m}5 a night, breakfast included."),
                ("Who is in room {m}0{n}, and when do they leave?", "guest_record", {"surname": "", "room": "{m}0{n}"}, '{{"surname": "{name}", "arrived": "Monday", "leaves": "Thursday", "notes": ["late check-out until {n} pm", "feather allergy"]}}', "{name}, until Thursday, with late check-out at {n} pm."),
                ("The {part} in {m}1{n} does not work any more. Please pass it on.", "open_repair", {"room": "{m}1{n}", "defect": "{part} broken"}, '{{"ticket": "R-{m}{n}7", "due": "today, {n} pm"}}', "Done: ticket R-{m}{n}7, the workshop comes today at {n} pm."),
            ),
            {"kind": ("single", "double", "suite"), "name": ("Okafor", "Lindqvist", "Moreau", "Petrov", "Tanaka"), "part": ("shower", "lamp", "lock", "heating", "television")},
        ),
        _Domain(
            "You are the assistant of a small software team. You read logs, run queries and explain failures.",
            (
                ("tail_log", "Last lines of a service's log.", {"service": "name of the service", "lines": "how many"}),
                ("run_query", "Run a read-only SQL statement.", {"statement": "the SQL"}),
                ("deploy_status", "State of the last deployment.", {"service": "name of the service"}),
            ),
            (
                ("Why did {service} restart tonight? Look at the last {m} lines.", "tail_log", {"service": "{service}", "lines": "{m}"}, "02:1{n}:07 WARN pool exhausted ({m} of {m} in use)\n02:1{n}:09 ERROR timeout after {n}000 ms: SELECT * FROM orders WHERE state = 'open'\n02:1{n}:09 ERROR worker {n} died, signal 9\n02:1{n}:12 INFO restarted in {m}3 ms", "Its pool of {m} connections ran out, a query timed out after {n} seconds and worker {n} was killed."),
                ("How many rows of table {table} are older than {n} days?", "run_query", {"statement": "SELECT count(*) FROM {table} WHERE age > {n}"}, '[{{"count": {m}{n}41}}]', "{m}{n}41 rows of {table} are older than {n} days."),
                ("Is the new build of {service} live everywhere?", "deploy_status", {"service": "{service}"}, '{{"version": "2.{n}.{m}", "hosts": {{"a": "live", "b": "live", "c": "draining"}}, "started": "14:0{n}"}}', "Nearly: 2.{n}.{m} is live on a and b; c is still draining."),
            ),
            {"service": ("billing", "search", "mailer", "gateway"), "table": ("events", "sessions", "audit", "drafts")},
        ),
        _Domain(
            "You plan deliveries for a bakery with three vans and forty regular customers.",
            (
                ("route_plan", "The stops of a van in order.", {"van": "number of the van", "day": "day of the week"}),
                ("customer_order", "Standing order of a customer.", {"customer": "name"}),
                ("move_stop", "Move a stop to another van.", {"customer": "name", "van": "number of the van"}),
            ),
            (
                ("What does {shop} get on {day}?", "customer_order", {"customer": "{shop}"}, '{{"customer": "{shop}", "{day}": {{"rye": {m}, "rolls": {n}0, "brioche": {n}}}, "paid": "monthly"}}', "{m} rye, {n}0 rolls and {n} brioche."),
                ("Read me the stops of van {n} for {day}.", "route_plan", {"van": "{n}", "day": "{day}"}, '["{shop} 05:{m}", "station kiosk 06:05", "school 06:{m}", "{shop2} 07:{m}"]', "Van {n} starts with {shop} at 05:{m}, then kiosk, school, and {shop2} at 07:{m}."),
                ("Van {n} is late. Put {shop} on another one.", "move_stop", {"customer": "{shop}", "van": "1"}, '{{"ok": true, "new_time": "07:{m}"}}', "{shop} is on van 1 now and gets its order at 07:{m}."),
            ),
            {"shop": ("Cafe Anselm", "Hotel Krone", "Bistro Vert", "Mill House"), "shop2": ("Corner Deli", "Harbour Inn"), "day": ("Monday", "Friday", "Sunday")},
        ),
        _Domain(
            "You support the front office of a physiotherapy practice and keep its calendar.",
            (
                ("free_slots", "Free appointments of a day.", {"day": "date", "therapist": "name or any"}),
                ("book_slot", "Book an appointment.", {"day": "date", "time": "time", "patient": "name"}),
                ("patient_plan", "Exercises of a patient.", {"patient": "name"}),
            ),
            (
                ("Has {therapist} anything free on the {n}th?", "free_slots", {"day": "2026-03-0{n}", "therapist": "{therapist}"}, '["08:{m}", "11:15", "16:{m}"]', "Yes, at 08:{m}, 11:15 and 16:{m}."),
                ("Book {patient} for the {n}th at 11:15.", "book_slot", {"day": "2026-03-0{n}", "time": "11:15", "patient": "{patient}"}, '{{"booked": true, "reminder": "sms", "room": {n}}}', "Booked in room {n}; {patient} gets a reminder by text message."),
                ("What is {patient} supposed to do at home?", "patient_plan", {"patient": "{patient}"}, "Bridge {n} x {m}; side plank {n} x 20 s; calf raise {n} x {m}; walk {m} minutes daily. Stop if the knee swells.", "Bridges and calf raises {n} times {m}, side planks of 20 seconds, and {m} minutes of walking a day."),
            ),
            {"therapist": ("Ines", "Marco", "Yuki"), "patient": ("Mr Adeyemi", "Ms Kowalska", "Mr Silva", "Ms Haddad")},
        ),
        _Domain(
            "You answer for a language school: courses, levels, teachers and fees.",
            (
                ("list_courses", "Courses of a language.", {"language": "which", "level": "A1 to C2"}),
                ("course_fee", "Fee of a course.", {"course": "its code", "months": "how many months"}),
                ("placement_test", "Result of a placement test.", {"student": "name"}),
            ),
            (
                ("Which {language} courses do you have at level {level}?", "list_courses", {"language": "{language}", "level": "{level}"}, '[{{"code": "{level}-{n}", "days": "Mon Wed", "seats": {n}}}, {{"code": "{level}-{m}", "days": "Sat", "seats": 0}}]', "Two: {level}-{n} on Mondays and Wednesdays with {n} seats left, and {level}-{m} on Saturdays, which is full."),
                ("What does {level}-{n} cost for {n} months?", "course_fee", {"course": "{level}-{n}", "months": "{n}"}, '{{"fee": {m}{n}0, "currency": "EUR", "books": {m}}}', "{m}{n}0 euros for {n} months, and {m} euros for books."),
                ("How did {student} do in the test?", "placement_test", {"student": "{student}"}, '{{"student": "{student}", "grammar": {m}, "listening": {n}2, "level": "{level}"}}', "{student} reached {level}: {m} points in grammar and {n}2 in listening."),
            ),
            {"language": ("Spanish", "Korean", "Polish"), "level": ("A2", "B1", "B2"), "student": ("Farid", "Noor", "Elsa")},
        ),
        _Domain(
            "You keep the inventory of a bicycle workshop and write short notes for the mechanics.",
            (
                ("stock_level", "How many of a part are there.", {"part": "name of the part"}),
                ("job_sheet", "What is to be done on a bicycle.", {"job": "number of the job"}),
                ("order_part", "Order a part.", {"part": "name of the part", "count": "how many"}),
            ),
            (
                ("Do we still have {part}s?", "stock_level", {"part": "{part}"}, '{{"part": "{part}", "shelf": "C{n}", "count": {n}, "minimum": {m}}}', "{n} are left on shelf C{n}; the minimum is {m}, so we should order."),
                ("What is job {m}{n} about?", "job_sheet", {"job": "{m}{n}"}, "Job {m}{n}: touring frame, rear wheel out of true by {n} mm, {part} worn to 0.{m}, customer rides daily, promised for {day}.", "A touring frame: true the rear wheel, change the {part}, ready by {day}."),
                ("Order {m} more {part}s, please.", "order_part", {"part": "{part}", "count": "{m}"}, '{{"order": "{n}{m}-X", "arrives": "{day}"}}', "Ordered under {n}{m}-X; they arrive on {day}."),
            ),
            {"part": ("chain", "brake pad", "cassette", "spoke"), "day": ("Tuesday", "Saturday")},
        ),
    ),
    "measured": (
        _Domain(
            "You are the assistant of a botanical garden. Visitors, gardeners and the shop ask you about plants and beds.",
            (
                ("plant_facts", "Facts about a species.", {"species": "common or Latin name"}),
                ("bed_sensor", "Latest readings of a bed.", {"bed": "code of the bed", "hours": "how far back"}),
                ("schedule_watering", "Water a bed at a time.", {"bed": "code of the bed", "minutes": "how long", "at": "time of day"}),
            ),
            (
                ("Is bed {bed} dry? Check the last {n} hours.", "bed_sensor", {"bed": "{bed}", "hours": "{n}"}, '[{{"t": "06:00", "moisture": 0.{m}, "temp": 1{n}.2}}, {{"t": "09:00", "moisture": 0.{n}1, "temp": 2{n}.0}}, {{"t": "12:00", "moisture": 0.0{n}, "temp": 2{n}.8}}]', "Yes. Moisture in {bed} fell from 0.{m} to 0.0{n} since six o'clock."),
                ("Tell me about the {plant} in two sentences.", "plant_facts", {"species": "{plant}"}, "{plant}: grows to {n}{m} cm, flowers from April to July, half shade, acid soil, hardy to -{m} degrees. Poisonous in all parts. Propagated by cuttings in August.", "The {plant} reaches {n}{m} cm and flowers from April to July in half shade. All of it is poisonous."),
                ("Water {bed} for {m} minutes tonight at {n}.", "schedule_watering", {"bed": "{bed}", "minutes": "{m}", "at": "2{n}:00"}, '{{"job": "W{m}{n}", "valve": {n}, "litres": {m}40}}', "Scheduled as W{m}{n}: valve {n}, {m}40 litres."),
            ),
            {"bed": ("A1", "B4", "F7", "H2"), "plant": ("foxglove", "rhododendron", "lily of the valley", "oleander")},
        ),
        _Domain(
            "You work in the control room of a regional railway and inform staff about trains, crews and platforms.",
            (
                ("train_position", "Where a train is.", {"train": "number of the train"}),
                ("crew_roster", "Who drives a train.", {"train": "number of the train", "date": "the date"}),
                ("announce", "Play an announcement.", {"station": "name of the station", "text": "what is said"}),
            ),
            (
                ("Where is train {m}{n}2 right now?", "train_position", {"train": "{m}{n}2"}, '{{"train": {m}{n}2, "last_stop": "{station}", "delay_min": {n}, "speed_kmh": {m}1, "next": ["{station2}", "Terminus"]}}', "It left {station}, runs {n} minutes late at {m}1 km/h, and stops next at {station2}."),
                ("Who is driving {m}{n}4 on the {n}th of May?", "crew_roster", {"train": "{m}{n}4", "date": "2026-05-0{n}"}, '{{"driver": "{driver}", "guard": null, "relief_at": "{station}", "hours": {n}.5}}', "{driver}, who is relieved at {station}; no guard is rostered."),
                ("Tell passengers at {station} that the {m}{n}6 leaves from platform {n}.", "announce", {"station": "{station}", "text": "Train {m}{n}6 leaves from platform {n}."}, '{{"played": true, "zones": {n}, "at": "1{n}:{m}"}}', "Announced in {n} zones at 1{n}:{m}."),
            ),
            {"station": ("Aldbury", "Kestrel Moor", "Saint Bride"), "station2": ("Lower Fenn", "Ostwick"), "driver": ("J. Mbeki", "R. Castellanos", "A. Virtanen")},
        ),
        _Domain(
            "You assist an accountant. You look up ledgers, convert currencies and draft reminders.",
            (
                ("ledger_lines", "Postings of an account in a month.", {"account": "number", "month": "YYYY-MM"}),
                ("exchange", "Convert an amount.", {"amount": "how much", "source": "currency code", "target": "currency code"}),
                ("draft_reminder", "Draft a payment reminder.", {"invoice": "number", "tone": "friendly or firm"}),
            ),
            (
                ("Show me account {m}00 for month 0{n}.", "ledger_lines", {"account": "{m}00", "month": "2026-0{n}"}, "date,text,debit,credit\n2026-0{n}-02,{firm} invoice {m}{n}1,,{m}80.50\n2026-0{n}-11,bank charges,{n}.90,\n2026-0{n}-19,{firm} part payment,{m}00.00,\n2026-0{n}-28,rounding,0.0{n},", "Four postings: {firm} billed {m}80.50 and paid {m}00.00; bank charges were {n}.90 and rounding 0.0{n}."),
                ("What are {m}{n}0 {cur} in {cur2}?", "exchange", {"amount": "{m}{n}0", "source": "{cur}", "target": "{cur2}"}, '{{"rate": 1.{n}{m}3, "result": {m}{n}7.41, "as_of": "2026-05-1{n}T16:00"}}', "{m}{n}0 {cur} are {m}{n}7.41 {cur2} at a rate of 1.{n}{m}3."),
                ("{firm} has not paid invoice {m}{n}1. Write something firm.", "draft_reminder", {"invoice": "{m}{n}1", "tone": "firm"}, "Dear {firm}, invoice {m}{n}1 was due {m} days ago. Please transfer the amount within {n} days; we shall otherwise charge interest.", "I drafted a firm reminder: due {m} days ago, {n} days to pay, interest afterwards."),
            ),
            {"firm": ("Brightwater Ltd", "Nordhaus", "Cielo Tiles"), "cur": ("CHF", "SEK", "GBP"), "cur2": ("EUR", "USD")},
        ),
        _Domain(
            "You are a research helper for an astronomy club: catalogues, weather for observing, and telescope time.",
            (
                ("catalogue", "Data of an object in the sky.", {"object": "its name or number"}),
                ("seeing_forecast", "Forecast for a night.", {"site": "name of the site", "date": "the date"}),
                ("reserve_scope", "Reserve a telescope.", {"scope": "its name", "start": "time", "hours": "how long"}),
            ),
            (
                ("How bright is {object}, and when does it culminate?", "catalogue", {"object": "{object}"}, '{{"object": "{object}", "mag": {n}.{m}, "size_arcmin": {m}, "culminates": "2{n}:{m}", "constellation": "{con}", "type": "open cluster"}}', "{object} in {con} has magnitude {n}.{m} and culminates at 2{n}:{m}."),
                ("Can we observe at {site} on the {n}th?", "seeing_forecast", {"site": "{site}", "date": "2026-10-0{n}"}, '{{"cloud": [{m}, {n}0, {n}, 0], "seeing_arcsec": 1.{n}, "moon": 0.{m}, "wind": {n}}}', "It clears from {m} percent to none; seeing is 1.{n} arcseconds and the moon at 0.{m}."),
                ("Reserve the {scope} from 2{n}:00 for {n} hours.", "reserve_scope", {"scope": "{scope}", "start": "2{n}:00", "hours": "{n}"}, '{{"error": "taken", "taken_by": "{con} group", "free_from": "0{n}:{m}"}}', "The {scope} is taken by the {con} group; it is free from 0{n}:{m}."),
            ),
            {"object": ("NGC 7789", "Messier 35", "IC 4665"), "con": ("Cassiopeia", "Gemini", "Ophiuchus"), "site": ("Dark Hill", "the dam", "West Field"), "scope": ("refractor", "large Dobsonian")},
        ),
        _Domain(
            "You run errands for a film production: props, locations, call sheets and permits.",
            (
                ("find_prop", "Props in the store.", {"query": "what is wanted", "period": "decade"}),
                ("call_sheet", "Call sheet of a shooting day.", {"day": "number of the day"}),
                ("permit_state", "State of a filming permit.", {"location": "where"}),
            ),
            (
                ("Do we own a {prop} from the {n}0s?", "find_prop", {"query": "{prop}", "period": "19{n}0"}, '[{{"id": "P{m}{n}", "what": "{prop}, brass", "state": "needs a clean"}}, {{"id": "P{m}9", "what": "{prop}, replica", "state": "good"}}]', "Two: P{m}{n} in brass, which needs a clean, and the replica P{m}9."),
                ("When is my call on day {n}?", "call_sheet", {"day": "{n}"}, "DAY {n} - unit base: {place}. Crew call 06:{m}. Make-up 05:{m}. Scene {m}A first, then {n}C if the rain holds. Lunch 12:{m}. Wrap 19:00. Nearest hospital {n} km.", "Crew call is 06:{m} at {place}, make-up at 05:{m}; the first scene is {m}A."),
                ("Has the permit for {place} come?", "permit_state", {"location": "{place}"}, '{{"location": "{place}", "state": "granted with conditions", "conditions": ["no drones", "quiet after 2{n}:00", "deposit {m}00"], "number": "F-{n}{m}"}}', "Yes, F-{n}{m}, on condition of no drones, quiet after 2{n}:00 and a deposit of {m}00."),
            ),
            {"prop": ("typewriter", "gramophone", "barometer", "switchboard"), "place": ("Harlow Quay", "the old mill", "Union Square")},
        ),
        _Domain(
            "You are a support agent of an internet provider. You read line data and explain it to customers.",
            (
                ("line_test", "Measure a customer's line.", {"customer": "customer number"}),
                ("outage_map", "Known outages of a district.", {"district": "its name"}),
                ("book_engineer", "Send an engineer.", {"customer": "customer number", "window": "morning or afternoon"}),
            ),
            (
                ("My internet is slow, customer number {m}{n}77. What is wrong?", "line_test", {"customer": "{m}{n}77"}, '{{"down_mbit": {n}.{m}, "expected": {m}0, "errors": {m}{n}0, "attenuation_db": {n}4, "hint": "connector corroded"}}', "You get {n}.{m} of {m}0 Mbit/s. The line has {m}{n}0 errors, most likely from a corroded connector."),
                ("Is there an outage in {district}?", "outage_map", {"district": "{district}"}, '{{"district": "{district}", "outages": [{{"id": {m}{n}, "households": {n}{m}0, "since": "0{n}:{m}", "cause": "cable cut", "repair": "1{n}:00"}}]}}', "Yes: a cable was cut at 0{n}:{m}; {n}{m}0 households are affected, and the repair should be done by 1{n}:00."),
                ("Please send somebody in the {half} to {m}{n}77.", "book_engineer", {"customer": "{m}{n}77", "window": "{half}"}, '{{"visit": "V-{n}{m}8", "date": "Thursday", "window": "{half}"}}', "Visit V-{n}{m}8 is booked for Thursday {half}."),
            ),
            {"district": ("Eastgate", "Millbrook", "Harbour Side"), "half": ("morning", "afternoon")},
        ),
    ),
}  # fmt: skip

_TEXTS = {
    "calibration": (
        "A canal lock is a chamber with gates at both ends. A boat enters, the gates close behind it, and water is let in or out until the level inside equals that beyond. No pump is needed: water only ever runs down. The miter gate, two leaves that meet at an angle, is pressed shut by the water itself, so the higher the difference of levels, the tighter it closes.",
        "def merge(left, right):\n    out = []\n    i = j = 0\n    while i < len(left) and j < len(right):\n        if left[i] <= right[j]:\n            out.append(left[i])\n            i += 1\n        else:\n            out.append(right[j])\n            j += 1\n    return out + left[i:] + right[j:]\n\n\ndef sort(values):\n    if len(values) < 2:\n        return values\n    middle = len(values) // 2\n    return merge(sort(values[:middle]), sort(values[middle:]))\n",
    ),
    "measured": (
        "Bread rises because yeast breathes. Given warmth, water and sugar it makes carbon dioxide, and the dough, whose proteins have joined into an elastic net, holds the gas in small bubbles. Kneading builds that net; salt tightens it and slows the yeast. In the oven the bubbles swell once more before the crust sets, the starch takes up the water, and what was sticky becomes crumb.",
        "The harbour was quiet when the mail boat came in. Two men took the lines and a dog barked at the bags. Nothing was addressed to the lighthouse that week but a parcel in brown paper, tied with more string than it needed, and a bill for lamp oil. Maren signed for both. She put the parcel under her arm, walked out along the mole against the wind, and did not open it until the light was lit.",
        "class Account:\n    def __init__(self, owner, balance=0):\n        self.owner = owner\n        self.balance = balance\n\n    def deposit(self, amount):\n        if amount <= 0:\n            raise ValueError(f'{amount} is not a deposit')\n        self.balance += amount\n\n    def withdraw(self, amount):\n        if amount > self.balance:\n            raise ValueError('not enough money')\n        self.balance -= amount\n        return amount\n",
        "Tides follow the moon because gravity weakens with distance. The near side of the earth is pulled more than its centre, the far side less, so the water stands high on both. As the earth turns beneath them, most coasts meet two high waters a day, each some fifty minutes later than the day before. When sun and moon pull in line the range is greatest; at half moon it is least.",
    ),
}  # fmt: skip


def plain_texts(split: Split) -> tuple[str, ...]:
    """Prose and code without any chat around them."""
    return _TEXTS[split]


def conversations(count: int, split: Split, seed: int = 0, turns: tuple[int, int] = (2, 4)) -> list[Conversation]:
    """``count`` conversations, the three kinds in turn.

    Args:
        count: how many.
        split: which set of domains.
        seed: another one gives others.
        turns: how many earlier turns those with a history have, at least and at most.
    """
    rng = random.Random(f"{split}-{seed}")  # noqa: S311 - sampling text is not cryptography
    kinds: tuple[Kind, ...] = ("question", "result", "turns")
    made: dict[str, Conversation] = {}
    while len(made) < count:  # one that came before is drawn again
        conversation = _conversation(rng, kinds[len(made) % 3], split, turns)
        made.setdefault(repr(conversation.messages), conversation)
    return list(made.values())


def _conversation(rng: random.Random, kind: Kind, split: Split, turns: tuple[int, int]) -> Conversation:
    main, other = rng.sample(_DOMAINS[split], 2)
    tools = [_schema(*tool) for domain in (main, other) for tool in domain.tools]
    rng.shuffle(tools)
    messages = [{"role": "system", "content": f"{main.system} {_RULES[split]}"}]
    if kind == "turns":
        for _ in range(rng.randint(*turns)):
            messages += _turn(rng, rng.choice((main, main, other)))
    last = _turn(rng, main)
    messages += last[:1] if kind == "question" or (kind == "turns" and rng.random() < 0.5) else last[:3]
    return Conversation(kind, tuple(messages), tuple(tools))


def _turn(rng: random.Random, domain: _Domain) -> list[dict[str, Any]]:
    """Question, call, result, answer."""
    question, tool, arguments, result, answer = rng.choice(domain.scenes)
    slots = {"n": str(rng.randint(2, 9)), "m": str(rng.randint(10, 59))}
    slots |= {name: rng.choice(words) for name, words in domain.words.items()}

    def fill(text: str) -> str:
        return text.format(**slots)

    call = {"name": tool, "arguments": {name: fill(value) for name, value in arguments.items()}}
    return [
        {"role": "user", "content": fill(question)},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": tool, "content": fill(result)},
        {"role": "assistant", "content": fill(answer)},
    ]


def _schema(name: str, description: str, arguments: dict[str, str]) -> dict[str, Any]:
    properties = {argument: {"type": "string", "description": text} for argument, text in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
