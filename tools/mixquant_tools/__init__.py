"""Tools for agents: typed, documented for the model, safe against hostile input.

======================  ==============================================================  =======================
module                  tools                                                           needs
======================  ==============================================================  =======================
``calculator``          ``calculator``
``clock``               ``current_time``, ``convert_time``, ``time_between``,           pint (units)
                        ``shift_time``, ``convert_units``
``file_tools``          ``list_files``, ``read_file``, ``find_in_files``,
                        ``write_file``, ``replace_in_file``
``sql``                 ``describe_database``, ``query_database``
``retrieval``           ``search_documents``, ``read_document``, ``save_note``,         bm25s, PyStemmer; vectors:
                        ``recall_notes``                                                onnxruntime, tokenizers …
``jail``                ``run_python``                                                  Linux with Landlock
``mcp_client``          those of an MCP server                                          mcp 2
======================  ==============================================================  =======================
"""
