"""Short chat templates of our own, each with the traits of a family that a renderer stumbles over. None is a copy."""

from __future__ import annotations

_SYSTEM_FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system first') }}{% endif %}{% endfor %}"
)
_ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
_SCHEMAS = "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}\n{% endfor %}</tools>\n{% endif %}"
_OPEN = "{% if add_generation_prompt %}[assistant]{% endif %}"

TEMPLATES: dict[str, str] = {
    # No tools, no system role, strict turns: Gemma 2.
    "strict_turns": "<s>" + _ALTERNATING + "{% for m in messages %}[{{ 'model' if m.role == 'assistant' else m.role }}]"
    "{{ m.content | trim }}[end]{% endfor %}{% if add_generation_prompt %}[model]{% endif %}",
    # No tools; the system message is part of the first user turn: Llama 2, Mistral 0.1.
    "system_in_user": "<s>{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    + _ALTERNATING
    + "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ s if loop.first else '' }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
    # No tools, any role: Phi-3, Zephyr.
    "any_role": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    # Hermes calls, arguments in either form: Qwen 2.5.
    "hermes_calls": "{% if messages[0].role == 'system' %}[system]{{ messages[0].content }}\n{% endif %}"
    + _SCHEMAS
    + "{% for m in messages %}{% if m.role == 'tool' %}[user]<tool_response>{{ m.content }}</tool_response>"
    "{% elif m.role != 'system' or not loop.first %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}[end]{% endfor %}" + _OPEN,
    # Arguments are joined as text, and calls stand only where there is no content: DeepSeek V3, R1.
    "text_calls": "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    + _SCHEMAS
    + "{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}"
    "{% elif m.role == 'tool' %}<output>{{ m.content }}</output>"
    "{% elif m.role == 'assistant' and m.content is none %}<Assistant><calls>{% for c in m.tool_calls %}"
    "{{ '<call>' + c.function.name + '<sep>' + c.function.arguments + '</call>' }}{% endfor %}</calls>{{ eos_token }}"
    "{% elif m.role == 'assistant' %}<Assistant>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<Assistant>{% endif %}",
    # The same without a place for schemas: DeepSeek R1's distillates, V3.1.
    "text_calls_no_schemas": "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}"
    "{% elif m.role == 'tool' %}<output>{{ m.content }}</output>"
    "{% elif m.role == 'assistant' %}<Assistant>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + '<sep>' + c.function.arguments + '</call>' }}{% endfor %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<Assistant>{% endif %}",
    # Ids of nine letters or digits, system message first, strict turns: Mistral.
    "nine_ids": _SYSTEM_FIRST
    + "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    '[TOOL_RESULTS]{"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{{ ', ' if not loop.last else '' }}{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% else %}[INST]{{ m.content }}[/INST]{% endif %}"
    "{% endfor %}",
    # The id stands in the name's place: Kimi K2.
    "id_is_name": _SCHEMAS + "{% for m in messages %}<{{ m.role }}>{% if m.role == 'tool' %}## Return of "
    "{{ m.tool_call_id }}\n{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.id }}<args>"
    "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}</call>{% endfor %}"
    "<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    # Schemas and results, but calls are the answer's own text: Granite 3.3.
    "spoken_calls": "{% if tools %}[tools]{{ tools | tojson }}[end] Call with <|tool_call|> and a JSON list.{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}" + _OPEN,
    # One call an answer: Llama 3.1, 3.2.
    "one_call": "[system]{{ messages[0].content if messages[0].role == 'system' else '' }}\n"
    + _SCHEMAS
    + "{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}"
    '[assistant]{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}[end]'
    "{% elif m.role == 'tool' %}[ipython]{{ m.content | tojson }}[end]"
    "{% elif m.role != 'system' or not loop.first %}[{{ m.role }}]{{ m.content }}[end]{% endif %}{% endfor %}" + _OPEN,
    # Thoughts under another name, and not beside text: gpt-oss.
    "own_thoughts": "[system]{{ messages[0].content if messages[0].role == 'system' else 'You are a model.' }}\n"
    + _SCHEMAS
    + "{% for m in messages %}{% if m.tool_calls %}{% if m.content and m.thinking %}"
    "{{ raise_exception('Put the analysis message in one or the other, but not both') }}{% endif %}"
    "[analysis]{{ m.content or m.thinking }}{% for c in m.tool_calls %}[call to=functions.{{ c.function.name }}]"
    "{{ c.function.arguments | tojson }}{% endfor %}[end]"
    "{% elif m.role == 'tool' %}[result]{{ m.content | tojson }}[end]"
    "{% elif m.role != 'system' or not loop.first %}[{{ m.role }}]{{ m.content }}[end]{% endif %}{% endfor %}" + _OPEN,
    # Results by their function's name: OLMo, FunctionGemma.
    "named_results": _SCHEMAS + "{% for m in messages %}{% if m.role == 'tool' %}[result {{ m.name }}]{{ m.content }}"
    "{% else %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}({% for k, v in c.function.arguments | items %}{{ k }}={{ v | tojson }}{% endfor %})"
    "{% endfor %}{% endif %}[end]{% endfor %}" + _OPEN,
    # Content in parts: templates of models that also see.
    "parts": _SCHEMAS + "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>"
    "{% endfor %}[end]{% endfor %}" + _OPEN,
    # Only the first system message is looked at: MiniMax, OLMo 3, Nemotron.
    "first_system": "{% if messages[0].role == 'system' %}[system]{{ messages[0].content }}[end]{% endif %}"
    + _SCHEMAS
    + "{% for m in messages %}{% if m.role == 'tool' %}[tool]{{ m.content }}[end]{% elif m.role != 'system' %}"
    "[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}<invoke {{ c.function.name }}>"
    "{{ c.function.arguments | tojson }}</invoke>{% endfor %}[end]{% endif %}{% endfor %}" + _OPEN,
}  # fmt: skip
"""Name of the trait → source."""
