"""XLA's flags for programs on CPUs that take longer to compile than to run."""

from importlib import metadata

#: The older emitters, which versions of jaxlib after 0.10 lack, compile in a quarter of the time.
FLAGS = (
    ('--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1')
    if metadata.version('jaxlib').startswith('0.10.')
    else ()
)
