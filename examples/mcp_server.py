"""An MCP server's tools in an agent. Run with the command of any server: python mcp_server.py uvx mcp-server-time"""

import asyncio
import sys
from typing import Any

from langchain_core.messages import HumanMessage
from mcp import StdioServerParameters

from mixquant_agents import MixQuantChatModel
from mixquant_tools.mcp_client import mcp_tools
from mixquant_workflows import tool_agent


async def main(model: MixQuantChatModel, server: Any, question: str = "What can you do for me?") -> str:
    async with mcp_tools(server) as tools:
        print("tools:", *(tool.name for tool in tools))
        state = await tool_agent(model, tools).ainvoke({"messages": [HumanMessage(question)]})
    print(state["messages"][-1].text)
    return state["messages"][-1].text


if __name__ == "__main__":
    command, *arguments = sys.argv[1:] or ["uvx", "mcp-server-time"]
    parameters = StdioServerParameters(command=command, args=arguments)
    asyncio.run(main(MixQuantChatModel(model="embedded", temperature=0, max_tokens=96), parameters))
