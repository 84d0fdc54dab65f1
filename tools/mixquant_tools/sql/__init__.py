"""Questions to an SQLite database, for reading only."""

from mixquant_tools.sql.database import Database, sql_tools

__all__ = ["Database", "sql_tools"]
