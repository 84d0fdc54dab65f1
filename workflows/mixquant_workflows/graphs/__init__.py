"""The bundled LangGraph graphs.

Reading order: ``steps`` (a model step, and reading the message list: what the graphs share), ``tool`` (the ReAct
agent), ``retrieval`` (search first, citations checked), ``memory`` (a dialogue without end), ``middleware`` (for agents
of LangChain's own making).
"""
