"""The bundled LangGraph graphs."""
