"""History as it was written: the tokens of earlier turns are used again, whatever the chat template makes of them now.

A template writes old answers anew: it drops thoughts, puts JSON in another order, trims white space. Each such change
breaks the prefix cache from there on, and the answer is read again although its exact keys and values lie in the cache.
So the prompt of a turn and the tokens of its answer are kept (``memory``), and a later prompt that goes on from them
begins with these very tokens; only what the template writes behind the answer is rendered (``tail``).

Where the conversation was changed in between (an edited answer, other tools), and where the template itself writes the
text of others differently by now (tools that move to the newest question), the prompt is rendered plainly.
"""

from mixquant_agents.engine.vllm.history.memory import WrittenAnswers, WrittenTurn, conversation_keys
from mixquant_agents.engine.vllm.history.tail import TemplateChangeError, tail_of
from mixquant_agents.engine.vllm.history.turn import TurnHistory

__all__ = ["TemplateChangeError", "TurnHistory", "WrittenAnswers", "WrittenTurn", "conversation_keys", "tail_of"]
