"""RetroLN finds and measures retroperitoneal lymph nodes in CT. The library knows no orchestrator."""
