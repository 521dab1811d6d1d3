"""Make the questions that the demo model is trained on and asked. (A module of train_demo.py and export_demo.py.)

Each question is made by a rule, so every answer can be checked. Five tasks: `story` (facts in a short story), `arithmetic` (sums and
differences of two-digit numbers), `sort` (words into alphabetical order), `count` (words in a list), `dates` (days of the week and of the
year). Every maker returns a chat: a question that stands alone, and for stories more questions about the same story.

Invariant: whether a question is held out depends on its content alone (`held_out`), never on its wording or on a random state. So a held-out
question was never seen in training, in any wording.
"""
import calendar
import hashlib
import random
from dataclasses import dataclass

TASKS = ("story", "arithmetic", "sort", "count", "dates")

NAMES = "Anna Ben Clara David Emma Felix Grace Hugo Iris Jack Kate Leo Mia Noah".split()
THINGS = "ball book kite lamp drum cup hat bell coin map ring boat".split()
COLOURS = "red blue green black white brown pink yellow".split()
PLACES = "garden kitchen park school shop forest house tower".split()
WORDS = (
    "ball bell bird boat book cake coin cup dog door drum fish forest fox garden hat house ice key kite lamp leaf map "
    "moon nest owl park pear pig ring river rose school sea ship shop star sun tower tree"
).split()
MOST_TURNS = 4          # questions about one story
DAYS = list(calendar.day_name)
MONTHS = list(calendar.month_name)[1:]
# 2023 was no leap year; the questions never name a year and no answer depends on February 29.
MONTH_DAYS = [calendar.monthrange(2023, m)[1] for m in range(1, 13)]


@dataclass(frozen=True)
class Question:
    """One question with its answer; `key` is its content without the wording."""

    task: str
    kind: str
    key: str
    text: str
    answer: str


def held_out(key):
    """True for the one question in sixteen that training never sees."""
    return hashlib.sha256(key.encode()).digest()[0] < 16


# --- stories ---------------------------------------------------------------
def story(rng):
    """Two to four sentences: people own one coloured thing each, go to places, give a thing away."""
    people = rng.sample(NAMES, rng.randint(2, 3))
    things = rng.sample(THINGS, len(people))
    colours = [rng.choice(COLOURS) for _ in people]
    owner, place, said, lines = {}, {}, [], []
    for who, thing, colour in zip(people, things, colours):
        if owner and rng.random() < 0.25:
            continue
        owner[thing] = who
        said.append((thing, colour))
        lines.append(f"{who} has a {colour} {thing}.")
    moves = rng.randint(1, 4 - len(lines))
    for _ in range(moves):
        who = rng.choice(people)
        if owner and rng.random() < 0.35:
            thing = rng.choice([t for t in owner])
            giver = owner[thing]
            taker = rng.choice([p for p in people if p != giver])
            owner[thing] = taker
            lines.append(f"{giver} gives the {thing} to {taker}.")
        else:
            where = rng.choice([p for p in PLACES if p != place.get(who)])
            verb = "goes to" if who in place or rng.random() < 0.5 else "is in"
            place[who] = where
            lines.append(f"{who} {verb} the {where}.")
    asks = []
    for thing, colour in said:
        asks.append(("colour", f"What colour is the {thing}?", f"The {thing} is {colour}."))
        asks.append(("owner", f"Who has the {thing}?", f"The {thing} is with {owner[thing]}."))
    for who in place:
        asks.append(("place", f"Where is {who}?", f"{who} is in the {place[who]}."))
    for who in people:
        has = [t for t in owner if owner[t] == who]
        if len(has) == 1:
            asks.append(("thing", f"What does {who} have?", f"{who} has the {has[0]}."))
    told = " ".join(lines) + " "
    asks = rng.sample(asks, min(len(asks), MOST_TURNS))
    return [Question("story", kind, "story " + told + ask, ask if i else told + ask, answer)
            for i, (kind, ask, answer) in enumerate(asks)]


# --- arithmetic ------------------------------------------------------------
def arithmetic(rng):
    """a + b and a - b of two-digit numbers, the difference never negative; the answer shows its working."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if rng.random() < 0.5:
        text = rng.choice((f"What is {a} + {b}?", f"Add {a} and {b}."))
        ones = a % 10 + b % 10
        carry = "1+" if ones > 9 else ""
        work = f"{a % 10}+{b % 10}={ones}, {carry}{a // 10}+{b // 10}={ones // 10 + a // 10 + b // 10}"
        return [Question("arithmetic", "sum", f"sum {min(a, b)} {max(a, b)}", text, f"{work}, so {a + b}")]
    a, b = max(a, b), min(a, b)
    text = rng.choice((f"What is {a} - {b}?", f"Take {b} from {a}."))
    borrow = int(a % 10 < b % 10)
    work = f"{10 * borrow + a % 10}-{b % 10}={10 * borrow + a % 10 - b % 10}, "
    work += f"{a // 10}{'-1' * borrow}-{b // 10}={a // 10 - borrow - b // 10}"
    return [Question("arithmetic", "difference", f"difference {a} {b}", text, f"{work}, so {a - b}")]


# --- sorting and counting ----------------------------------------------------
def sort(rng):
    """Three or four different words into alphabetical order."""
    words = rng.sample(WORDS, rng.randint(3, 4))
    key = "sort " + " ".join(sorted(words))
    text = rng.choice(("Sort these words: ", "Put in order: ")) + ", ".join(words)
    return [Question("sort", str(len(words)), key, text, ", ".join(sorted(words)))]


def count(rng):
    """How often a word stands in a list of three to seven words, or how many words it has; the answer counts along."""
    kinds = rng.sample(WORDS, rng.randint(2, 3))
    words = [rng.choice(kinds) for _ in range(rng.randint(3, 7))]
    line = ", ".join(words)
    if rng.random() < 0.25:
        work = ", ".join(f"{w} {i + 1}" for i, w in enumerate(words))
        return [Question("count", "length", "length " + line, f"How many words are there: {line}?", f"{work}, so {len(words)}")]
    word, n, work = rng.choice(kinds), 0, []
    for w in words:
        n += w == word
        work.append(f"{w} {n}" if w == word else w)
    text = f"How many times does {word} occur: {line}?"
    return [Question("count", "occurrences", f"count {word}: {line}", text, ", ".join(work) + f", so {n}")]


# --- days and dates ----------------------------------------------------------
def _split(day_of_year):
    """Day of the year, from 0, as number of the month, from 0, and day of the month."""
    month = 0
    while day_of_year >= MONTH_DAYS[month]:
        day_of_year -= MONTH_DAYS[month]
        month += 1
    return month, day_of_year + 1


def _date(day_of_year):
    month, day = _split(day_of_year)
    return f"{MONTHS[month]} {day}"


def _days(n):
    return "1 day" if n == 1 else f"{n} days"


def _shift(start, n):
    """The date n days after (before, where n is negative) a day of the year, with the working."""
    month, day = _split(start)
    to = day + n
    if to > MONTH_DAYS[month]:
        days = MONTH_DAYS[month]
        return f"{day}+{n}={to}, {to}-{days}={to - days}, so {MONTHS[(month + 1) % 12]} {to - days}"
    if to < 1:
        days = MONTH_DAYS[month - 1]
        return f"{days}+{day}={days + day}, {days + day}{n}={days + to}, so {MONTHS[month - 1]} {days + to}"
    return f"{day}{n:+}={to}, so {MONTHS[month]} {to}"


def _count_days(day, n):
    """The weekday n days after (before, where n is negative) a weekday, counting along."""
    days = [DAYS[(day + (i if n > 0 else -i)) % 7] for i in range(1, abs(n) + 1)]
    return ", ".join(f"{d} {i + 1}" for i, d in enumerate(days)) + f", so {days[-1]}"


def dates(rng):
    """A date some days away, the weekday of a date, the earlier of two dates, a weekday some days away."""
    kind = rng.choices(("shift", "weekday", "earlier", "day"), (0.4, 0.25, 0.25, 0.1))[0]
    if kind == "shift":
        start, n = rng.randrange(365), rng.randint(1, 7)
        sign, word = rng.choice(((1, "after"), (-1, "before")))
        text = f"What date is {_days(n)} {word} {_date(start)}?"
        return [Question("dates", kind, f"shift {start} {sign * n}", text, _shift(start, sign * n))]
    if kind == "weekday":
        month, n, day = rng.randrange(12), rng.randint(1, 7), rng.randrange(7)
        start = rng.randint(1, MONTH_DAYS[month] - n)
        text = f"If {MONTHS[month]} {start} is a {DAYS[day]}, what day is {MONTHS[month]} {start + n}?"
        answer = f"{start + n}-{start}={n}, {_count_days(day, n)}"
        return [Question("dates", kind, f"weekday {month} {start} {n} {day}", text, answer)]
    if kind == "earlier":
        a, b = rng.sample(range(365), 2)
        text = f"Which date is earlier, {_date(a)} or {_date(b)}?"
        return [Question("dates", kind, f"earlier {min(a, b)} {max(a, b)}", text, _date(min(a, b)))]
    day, n = rng.randrange(7), rng.randint(1, 7)
    sign, word = rng.choice(((1, "after"), (-1, "before")))
    text = f"What day is {_days(n)} {word} {DAYS[day]}?"
    return [Question("dates", kind, f"day {day} {sign * n}", text, _count_days(day, sign * n))]


# --- an exercise ---------------------------------------------------------------
def recall(rng):
    """Pairs of words, told once and asked many times. No task: it teaches early to look up what was said."""
    keys = rng.sample(sorted({*WORDS, *THINGS, *NAMES}), rng.randint(4, 6))
    values = {k: rng.choice(sorted({*COLOURS, *PLACES, *NAMES})) for k in keys}
    asked = [rng.choice(keys) for _ in range(14)]
    text = ", ".join(f"{values[k]} {k}" for k in keys)
    return [Question("recall", "recall", "recall " + text, text + "?", ", ".join(f"{k} {values[k]}" for k in asked))]


MAKERS = {"story": story, "arithmetic": arithmetic, "sort": sort, "count": count, "dates": dates, "recall": recall}


def training(rng, task):
    """One chat of `task` without held-out questions."""
    while True:
        # The 98 questions of kind `day` are too few to learn from fifteen in sixteen of them.
        first, *more = MAKERS[task](rng)
        if first.kind == "day" or not held_out(first.key):
            return [first] + [q for q in more if not held_out(q.key)]


def test_set(seed, per_task):
    """`per_task` different held-out questions of every task, each the first of its chat."""
    out = []
    for task in TASKS:
        rng, seen = random.Random(f"{seed} test {task}"), set()
        while len(seen) < per_task:
            question = MAKERS[task](rng)[0]
            if question.kind != "day" and held_out(question.key) and question.key not in seen:
                seen.add(question.key)
                out.append(question)
    return out
