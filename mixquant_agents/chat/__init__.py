"""The chat layer: LangChain's messages in, an engine's request out; the engine's deltas in, LangChain's chunks out.

Reading order, along the way of one turn:

1. ``model``            the chat model: settings, LangChain's entry points, one driver for all of them
2. ``call_options``     what the model is set up with and a call may override; ``standard_names`` of other chat models
3. ``engine_source``    where the engine comes from: its owner, a server's address, or the settings of a shared one
4. ``run_context``      which run and thread a turn belongs to; ``loop_thread`` for callers without an event loop
5. ``request``          options and messages → ``EngineRequest``; ``messages`` and ``tools`` convert
6. ``turn``             the async driver: engine → accumulator → chunks, and one record whatever happens
7. ``accumulator``      deltas → message chunks, pure; ``tool_calls`` judges which calls are valid
8. ``recorders``        where the record goes; it can neither fail nor delay a turn
9. ``structured``       ``with_structured_output``
10. ``langchain_errors``  the boundary at which our errors become LangChain's, too
"""
