"""The logger of runs in the terminal."""

import logging

import dagster as dg


@dg.logger(config_schema={"log_level": str}, description="Messages of assets, for a terminal.")
def terminal_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Messages of assets on standard error; Dagster's events, which include tracebacks, only at INFO and below.

    The command reports errors once, at its end.
    """
    level = logging.getLevelName(context.logger_config["log_level"])
    logger = logging.Logger("ivr", level)
    handler = logging.StreamHandler()
    handler.setFormatter(_TerminalFormatter())
    if level > logging.INFO:
        handler.addFilter(lambda record: getattr(record, "dagster_meta", {}).get("dagster_event") is None)
    logger.addHandler(handler)
    return logger


class _TerminalFormatter(logging.Formatter):
    """`level: step: message`."""

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", {})
        message = meta.get("orig_message") or record.getMessage()
        return ": ".join(part for part in (record.levelname.lower(), meta.get("step_key"), message) if part)
