"""The decode engines: a model flattened to a schedule, the engines that run it, and the registry that picks one."""
