"""The first form: records, and the files that they were taken from."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "benchmark_records",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("test", sa.String(), nullable=False),
        sa.Column("test_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("avg_ts", sa.Double(), nullable=False),
        sa.Column("median_ts", sa.Double(), nullable=False),
        sa.Column("stddev_ts", sa.Double(), nullable=False),
        sa.Column("samples_ts", sa.JSON(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("machine_id", sa.String(), nullable=False),
        sa.Column("gpu_uuid", sa.String(), nullable=False),
        sa.Column("gpu_info", sa.String(), nullable=False),
        sa.Column("gpus", sa.BigInteger(), nullable=False),
        sa.Column("compute_capability", sa.String(), nullable=False),
        sa.Column("vram_mib", sa.BigInteger(), nullable=True),
        sa.Column("n_prompt", sa.BigInteger(), nullable=False),
        sa.Column("n_gen", sa.BigInteger(), nullable=False),
        sa.Column("n_depth", sa.BigInteger(), nullable=False),
        sa.Column("model_filename", sa.String(), nullable=False),
        sa.Column("model_sha256", sa.String(), nullable=False),
        sa.Column("model_type", sa.String(), nullable=False),
        sa.Column("model_size", sa.BigInteger(), nullable=True),
        sa.Column("model_n_params", sa.BigInteger(), nullable=True),
        sa.Column("flash_attn", sa.Boolean(), nullable=True),
        sa.Column("n_gpu_layers", sa.BigInteger(), nullable=True),
        sa.Column("n_batch", sa.BigInteger(), nullable=True),
        sa.Column("n_ubatch", sa.BigInteger(), nullable=True),
        sa.Column("type_k", sa.String(), nullable=False),
        sa.Column("type_v", sa.String(), nullable=False),
        sa.Column("n_threads", sa.BigInteger(), nullable=True),
        sa.Column("llama_bench", sa.JSON(), nullable=False),
        sa.Column("driver", sa.String(), nullable=False),
        sa.Column("toolkit", sa.String(), nullable=False),
        sa.Column("nvcc", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("llama_cpp_python", sa.String(), nullable=False),
        sa.Column("build_number", sa.BigInteger(), nullable=True),
        sa.Column("build_commit", sa.String(), nullable=False),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=True),
        sa.Column("busy", sa.JSON(), nullable=False),
        sa.Column("sm_clock_mhz", sa.Double(), nullable=True),
        sa.Column("sm_clock_max_mhz", sa.Double(), nullable=True),
        sa.Column("memory_clock_mhz", sa.Double(), nullable=True),
        sa.Column("power_limit_w", sa.Double(), nullable=True),
        sa.Column("power_default_w", sa.Double(), nullable=True),
        sa.Column("temperature_c", sa.Double(), nullable=True),
        sa.Column("utilisation", sa.Double(), nullable=True),
        sa.Column("throttled_s", sa.JSON(), nullable=False),
        sa.Column("pcie_generation", sa.BigInteger(), nullable=True),
        sa.Column("pcie_generation_max", sa.BigInteger(), nullable=True),
        sa.Column("pcie_width", sa.BigInteger(), nullable=True),
        sa.Column("pcie_width_max", sa.BigInteger(), nullable=True),
        sa.Column("processes", sa.BigInteger(), nullable=True),
        sa.Column("persistence", sa.Boolean(), nullable=True),
        sa.Column("peak_vram_mib", sa.BigInteger(), nullable=True),
        sa.Column("load_s", sa.Double(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
    )
    op.create_index("benchmark_records_gpu", "benchmark_records", ["gpu_uuid", "test_time"])
    op.create_index("benchmark_records_host", "benchmark_records", ["host", "test_time"])
    op.create_index("benchmark_records_time", "benchmark_records", ["test_time", "id"])
    op.create_table(
        "benchmark_sources",
        sa.Column("folder", sa.String(), primary_key=True),
        sa.Column("path", sa.String(), primary_key=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
    )
