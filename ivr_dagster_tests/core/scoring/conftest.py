from ivr_dagster_tests.small_models import model, one_thread  # noqa: F401
