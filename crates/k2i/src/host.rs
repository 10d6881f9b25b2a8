//! Facts of the host: kernel, CPUs, memory, load, pressure.
