"""Sixty tasks for the bundled tools, each two to five model turns long and checked by value.

A line is ``id | tools on offer | what the user says | the calls of a right solution | what the answer must hold``;
several messages of one user are separated by ``//``, several calls by ``;``. ``=> path: text`` asks for a file's final
content.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

__all__ = ["Task", "UserTurn", "tasks"]


@dataclass(frozen=True, slots=True)
class UserTurn:
    """One user message, the calls of a right solution, and the values its answer must hold."""

    says: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    expects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """A task. ``files`` is what must be in the folder at the end."""

    id: str
    tools: tuple[str, ...]
    turns: tuple[UserTurn, ...]
    files: tuple[tuple[str, str], ...] = ()


def tasks() -> list[Task]:
    """All tasks, in order."""
    return [_task(line) for line in _TASKS.strip().splitlines()]


def _task(line: str) -> Task:
    text, _, state = line.partition(" => ")
    name, tools, says, calls, expects = (part.strip() for part in text.split(" | "))
    turns = tuple(
        UserTurn(
            question.strip(),
            tuple(_call(item) for item in called.split("; ") if item.strip()),
            tuple(value.strip() for value in expected.split(" & ") if value.strip()),
        )
        for question, called, expected in zip(says.split("//"), calls.split("//"), expects.split("//"), strict=True)
    )
    path, _, content = state.partition(": ")
    return Task(name, tuple(tools.split()), turns, ((path.strip(), content.replace("\\n", "\n")),) if path else ())


def _call(text: str) -> tuple[str, dict[str, Any]]:
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"{text!r} is not a call")
    return call.func.id, {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}


_TASKS = r"""
calc-01 | calculator convert_units | What is 37 times 43? | calculator(expression="37*43") | 1591
calc-02 | calculator current_time | What is 15% of 260? | calculator(expression="15% of 260") | 39
calc-03 | calculator search_documents | Add 128, 256 and 512. | calculator(expression="128+256+512") | 896
calc-04 | calculator convert_units | What is 2 to the power of 20? | calculator(expression="2^20") | 1048576
calc-05 | calculator read_file | A shirt costs 48 dollars and is reduced by 25%. What does it cost now? | calculator(expression="48*0.75") | 36
calc-06 | calculator convert_time | What is the square root of 7744? | calculator(expression="sqrt(7744)") | 88
calc-07 | calculator save_note | I buy 12 boxes with 24 eggs each. How many eggs is that? | calculator(expression="12*24") | 288
calc-08 | calculator query_database | Divide 9184 by 28. | calculator(expression="9184/28") | 328
calc-09 | calculator | What is 91 minus 37? // And that times 6? | calculator(expression="91-37") // calculator(expression="54*6") | 54 // 324
calc-10 | calculator convert_units | What is the mean of 12, 19 and 35? | calculator(expression="mean(12, 19, 35)") | 22
unit-01 | convert_units calculator | Convert 5 miles to kilometers. | convert_units(value=5, source="mile", target="km") | 8.0467
unit-02 | convert_units current_time | How many pounds are 10 kilograms? | convert_units(value=10, source="kg", target="pound") | 22.046
unit-03 | convert_units calculator | What is 100 degrees Celsius in Fahrenheit? | convert_units(value=100, source="degC", target="degF") | 212
unit-04 | convert_units search_documents | Convert 3 hours to seconds. | convert_units(value=3, source="hour", target="second") | 10800
unit-05 | convert_units read_file | How many meters are 12 feet? | convert_units(value=12, source="foot", target="meter") | 3.6576
unit-06 | convert_units calculator | Convert 90 km/h to m/s. | convert_units(value=90, source="km/h", target="m/s") | 25
time-01 | current_time calculator | What time is it in Asia/Tokyo? | current_time(timezone="Asia/Tokyo") | 21:00
time-02 | current_time convert_units | Which day of the week is it in UTC? | current_time(timezone="UTC") | Sunday
time-03 | time_between current_time | How many days are there from 2026-03-01 to 2026-12-24? | time_between(start="2026-03-01", end="2026-12-24") | 298
time-04 | shift_time current_time | Which date is 45 days after 2026-01-10? | shift_time(when="2026-01-10", days=45) | 2026-02-24
time-05 | convert_time current_time | It is 2026-07-01T09:00 in America/New_York. What time is it in Europe/Berlin? | convert_time(when="2026-07-01T09:00", source="America/New_York", target="Europe/Berlin") | 15:00
time-06 | shift_time time_between | Go back 90 minutes from 2026-05-04T10:15. | shift_time(when="2026-05-04T10:15", minutes=-90) | 08:45
file-01 | read_file calculator | Read todo.txt. What do I have to buy? | read_file(path="todo.txt") | oat milk
file-02 | read_file list_files | What is Ben Okoro's number in team/contacts.txt? | read_file(path="team/contacts.txt") | 555-0178
file-03 | find_in_files read_file | Find the word ERROR in the files. At what time did it happen? | find_in_files(text="ERROR") | 10:02
file-04 | list_files read_file | List the files. How many bytes has budget.txt? | list_files() | 28
file-05 | read_file search_documents | How many eggs do the pancakes in recipes/pancakes.md need? | read_file(path="recipes/pancakes.md") | 4
file-06 | write_file read_file | Write the text "milk" to the file shopping.txt. | write_file(path="shopping.txt", text="milk") |  => shopping.txt: milk
file-07 | replace_in_file read_file | In todo.txt, replace "oat milk" by "rice". | replace_in_file(path="todo.txt", old="oat milk", new="rice") |  => todo.txt: call the plumber\nbuy rice\npay the water bill\n
file-08 | read_file calculator | Read budget.txt. What is the sum of all amounts? | read_file(path="budget.txt"); calculator(expression="1200+430+95") | 1725
file-09 | read_file calculator | Read inventory.csv. What are all the ladders worth together? | read_file(path="inventory.csv"); calculator(expression="3*85") | 255
file-10 | read_file write_file | Write "hello" to a.txt. // Now read a.txt. What does it say? | write_file(path="a.txt", text="hello") // read_file(path="a.txt") |  // hello => a.txt: hello
sql-01 | query_database describe_database | How many rows has the table employees? | query_database(sql="SELECT count(*) FROM employees") | 7
sql-02 | query_database calculator | In which city does Mei live? The table is employees with name and city. | query_database(sql="SELECT city FROM employees WHERE name = 'Mei'") | Kobe
sql-03 | query_database describe_database | What is the highest salary in the table employees? | query_database(sql="SELECT max(salary) FROM employees") | 5200
sql-04 | describe_database query_database | Which tables does the database have? | describe_database() | employees & orders
sql-05 | query_database search_documents | How many lamps were ordered in total? The table is orders with product and quantity. | query_database(sql="SELECT sum(quantity) FROM orders WHERE product = 'lamp'") | 5
sql-06 | describe_database query_database | Look at the tables. What is the average salary in sales? | describe_database(); query_database(sql="SELECT avg(salary) FROM employees WHERE department = 'sales'") | 4000
sql-07 | query_database calculator | What is the price of a desk in the table orders? // And of a shelf? | query_database(sql="SELECT price FROM orders WHERE product = 'desk'") // query_database(sql="SELECT price FROM orders WHERE product = 'shelf'") | 320 // 110
sql-08 | query_database current_time | Which customer ordered chairs? The table is orders with customer and product. | query_database(sql="SELECT customer FROM orders WHERE product = 'chair'") | Ana
docs-01 | search_documents calculator | How many days of vacation does an employee have? | search_documents(query="vacation days employee") | 27
docs-02 | search_documents current_time | What is the daily food allowance on a trip? | search_documents(query="daily food allowance") | 38
docs-03 | search_documents read_file | Which toner does the printer need? | search_documents(query="printer toner") | TX-450
docs-04 | search_documents query_database | When does the ferry to Hven leave? | search_documents(query="ferry Hven leaves") | 7:45
docs-05 | search_documents convert_units | When was the telescope built? | search_documents(query="telescope built") | 1974
docs-06 | search_documents calculator | On which day is the museum closed? // And what does a student pay? | search_documents(query="museum closed") // search_documents(query="museum ticket student") | Tuesday // 7
docs-07 | search_documents read_document | How heavy is the rye bread? Search first, then read the document. | search_documents(query="rye bread"); read_document(path="bakery.md") | 750
docs-08 | search_documents save_note | How long may I keep a library book? | search_documents(query="library book kept") | 21
note-01 | save_note recall_notes | Remember that my locker has the number 418. // What is the number of my locker? | save_note(text="The user's locker has the number 418.") // recall_notes(query="locker number") | 418 // 418
note-02 | save_note recall_notes | Save a note: Olga's birthday is on 9 May. // When is Olga's birthday? | save_note(text="Olga's birthday is on 9 May.") // recall_notes(query="Olga birthday") |  // 9 May
note-03 | save_note calculator | Work out 17 times 12. // Save a note with the result. | calculator(expression="17*12") // save_note(text="17 times 12 is 204.") | 204 //
note-04 | recall_notes save_note | Remember that the wifi password is bluebird. // What is the wifi password? | save_note(text="The wifi password is bluebird.") // recall_notes(query="wifi password") |  // bluebird
mix-01 | search_documents calculator | A library book is 6 weeks late. Look up the price per week. What must I pay? | search_documents(query="late book costs week"); calculator(expression="6*2") | 12
mix-02 | search_documents convert_units | Look up the width of the telescope's mirror. How many inches is that? | search_documents(query="telescope mirror centimetres"); convert_units(value=180, source="cm", target="inch") | 70.8
mix-03 | query_database calculator | Look up Tom's salary in employees. What does he earn in 12 months? | query_database(sql="SELECT salary FROM employees WHERE name = 'Tom'"); calculator(expression="4400*12") | 52800
mix-04 | read_file convert_units | Read recipes/pancakes.md. How many ounces of flour is that? | read_file(path="recipes/pancakes.md"); convert_units(value=250, source="gram", target="ounce") | 8.818
mix-05 | search_documents write_file | Look up when the bakery opens and write the time to bakery.txt. | search_documents(query="bakery opens"); write_file(path="bakery.txt", text="6:30") |  => bakery.txt: 6:30
mix-06 | current_time shift_time | What is the date today in UTC, and which date is it in 10 days? | current_time(timezone="UTC"); shift_time(when="2026-03-01", days=10) | 2026-03-11
mix-07 | search_documents shift_time | The ferry leaves on 2026-06-01T07:45. Look up how long it takes. When does it arrive? | search_documents(query="ferry crossing takes"); shift_time(when="2026-06-01T07:45", minutes=30) | 8:15
mix-08 | search_documents query_database calculator | How many desks has the office in Graz? // And how many employees live in Graz? The table is employees with city. // How many desks stay free there? | search_documents(query="desks office Graz") // query_database(sql="SELECT count(*) FROM employees WHERE city = 'Graz'") // calculator(expression="14-1") | 14 // 1 // 13
"""  # noqa: E501 - one task is one line
