//! The tables of a host: osquery's names and columns, and ours behind them.
//!
//! Each table is there twice. About one host `dc` and `host` stand at the end and are hidden, so that
//! `SELECT *` gives what osquery gives; about many they stand in front.

use kumo_sql::{Column, Kind, Role, Table};

const fn column(
    name: &'static str,
    kind: Kind,
    role: Role,
    is_hidden: bool,
    about: &'static str,
) -> Column {
    Column { name, kind, role, is_hidden, about }
}

const DC: &str = "Data centre of the host";
const HOST: &str = "Host that the row is of";

macro_rules! tables {
    ($( $module:ident $name:literal $about:literal rows $rows:literal keyed $keyed:literal {
        $( $column:literal $kind:ident $role:ident $said:literal; )*
        hidden { $( $more:literal $more_kind:ident $more_role:ident $more_said:literal; )* }
    } )*) => {
        $(
            mod $module {
                use super::{Column, DC, HOST, Kind, Role, column};

                pub(super) const ONE: &[Column] = &[
                    $( column($column, Kind::$kind, Role::$role, false, $said), )*
                    $( column($more, Kind::$more_kind, Role::$more_role, true, $more_said), )*
                    column("dc", Kind::Text, Role::Identity, true, DC),
                    column("host", Kind::Text, Role::Identity, true, HOST),
                ];
                pub(super) const MANY: &[Column] = &[
                    column("dc", Kind::Text, Role::Key, false, DC),
                    column("host", Kind::Text, Role::Key, false, HOST),
                    $( column($column, Kind::$kind, Role::$role, false, $said), )*
                    $( column($more, Kind::$more_kind, Role::$more_role, true, $more_said), )*
                ];
            }
        )*

        /// The tables about one host.
        pub static TABLES: &[Table] = &[
            $( Table {
                name: $name, about: $about, columns: $module::ONE,
                rows_about: $rows, keyed_reads_max: $keyed,
            }, )*
        ];

        /// The same about many.
        pub static TABLES_OF_MANY: &[Table] = &[
            $( Table {
                name: $name, about: $about, columns: $module::MANY,
                // Each read is a question to all of them, and a condition on a host is worth one.
                rows_about: $rows * 100, keyed_reads_max: 1,
            }, )*
        ];
    };
}

tables! {
    processes "processes" "Processes that live" rows 1_000 keyed 1 {
        "pid" BigInt Key "Process number";
        "name" Text Group "Name of the task, at most 15 bytes for user processes";
        "path" Text Plain "Executable file; empty for kernel threads, null where it cannot be read";
        "cmdline" Text Plain "Command line, arguments joined by blanks; empty for kernel threads";
        "state" Text Plain "State: R, S, D, T, t, Z, X, I or P";
        "cwd" Text Plain "Working directory";
        "root" Text Plain "Root directory";
        "uid" BigInt Group "Real user id";
        "gid" BigInt Plain "Real group id";
        "euid" BigInt Plain "Effective user id";
        "egid" BigInt Plain "Effective group id";
        "suid" BigInt Plain "Saved user id";
        "sgid" BigInt Plain "Saved group id";
        "on_disk" Integer Plain "Whether the executable is there: 1; 0 when it was deleted, -1 when that is not known. It is what the kernel says, so that a file of another mount namespace counts as there";
        "wired_size" BigInt Plain "Always 0, as on every Linux";
        "resident_size" BigInt Plain "Resident memory, bytes";
        "total_size" BigInt Plain "Virtual memory, bytes";
        "user_time" BigInt Plain "CPU time in user mode, milliseconds";
        "system_time" BigInt Plain "CPU time in the kernel, milliseconds";
        "disk_bytes_read" BigInt Plain "Bytes fetched from storage";
        "disk_bytes_written" BigInt Plain "Bytes sent to storage, less those cancelled before";
        "start_time" BigInt Plain "Start, seconds since the epoch";
        "parent" BigInt Plain "Process number of the parent; 0 when it cannot be seen";
        "pgroup" BigInt Plain "Process group";
        "threads" Integer Plain "Number of threads";
        "nice" Integer Plain "Nice value";
        "cgroup_path" Text Plain "Path of its control group; the unified hierarchy's, else the deepest";
        hidden {
            "id" Text Plain "Identity that is never reused: PID@START";
            "upid" Text Plain "The same, by its other name";
            "user" Text Plain "Name of the effective user";
            "cpu" Double Plain "CPU use of late, percent of one CPU";
            "mem" Double Plain "Resident memory, percent of all";
            "elapsed_time" BigInt Plain "Seconds since its start";
            "kernel" Integer Plain "Whether it is a kernel thread";
            "tty" Text Plain "Controlling terminal";
            "session" BigInt Plain "Session";
            "container" Text Plain "Container as runtime:id with 12 digits";
            "container_id" Text Plain "Whole container id";
            "pod" Text Plain "UID of its Kubernetes pod";
            "unit" Text Plain "systemd unit";
            "slice" Text Plain "systemd slice";
            "swap" BigInt Plain "Memory swapped out, bytes";
            "run_delay" Double Plain "Seconds it was ready and waited for a CPU";
            "oom_score" Integer Plain "Score of the OOM killer";
            "loginuid" BigInt Plain "User id that logged in (audit)";
            "seccomp" Text Plain "System call filter: disabled, strict or filter";
            "no_new_privs" Integer Plain "Whether it can gain no privileges by exec";
            "cap_eff" Text Plain "Effective capabilities, 16 hexadecimal digits";
            "wchan" Text Plain "Kernel function that it sleeps in";
            "blocked_on" Text Plain "Call whose reply it waits for longest";
            "ns_net" BigInt Plain "Network namespace (inode)";
            "ns_pid" BigInt Plain "PID namespace (inode)";
        }
    }
    process_events "process_events" "Programs that were executed, as far as they are remembered: the last of each process that lives or has ended since the node began" rows 10_000 keyed 1 {
        "pid" BigInt Identity "Process number";
        "path" Text Plain "Null: no event tells it";
        "mode" Text Plain "Null, likewise";
        "cmdline" Text Plain "Command line, at most its first 512 bytes";
        "cwd" Text Plain "Null: no event tells it";
        "auid" BigInt Plain "Null, likewise";
        "uid" BigInt Plain "Real user id";
        "euid" BigInt Plain "Effective user id";
        "gid" BigInt Plain "Real group id";
        "egid" BigInt Plain "Effective group id";
        "owner_uid" BigInt Plain "Null: no event tells it";
        "owner_gid" BigInt Plain "Null, likewise";
        "atime" BigInt Plain "Null, likewise";
        "mtime" BigInt Plain "Null, likewise";
        "ctime" BigInt Plain "Null, likewise";
        "btime" BigInt Plain "Null, likewise";
        "parent" BigInt Plain "Process number of the parent; -1 when it is not known";
        "time" BigInt Plain "When it was executed, seconds since the epoch";
        "uptime" BigInt Plain "The same, seconds since the boot";
        "fsuid" BigInt Plain "User id for file access";
        "suid" BigInt Plain "Saved user id";
        "fsgid" BigInt Plain "Group id for file access";
        "sgid" BigInt Plain "Saved group id";
        "syscall" Text Plain "Null: no event tells which of the calls it was";
        hidden {
            "cmdline_size" BigInt Plain "Bytes of the command line; null where only its beginning is kept";
            "env" Text Plain "Null: environments are not kept";
            "environment" Text Plain "The same, by its other name";
            "env_count" BigInt Plain "Null, likewise";
            "env_size" BigInt Plain "Null, likewise";
            "overflows" Text Plain "cmdline where only its beginning is kept, else empty";
            "eid" Text Identity "Identity that is never reused: PID@START";
            "name" Text Plain "Name of the task";
            "container_id" Text Plain "Whole container id";
            "unit" Text Plain "systemd unit";
            "ended_at" BigInt Plain "When it ended, seconds since the epoch; null while it lives";
            "exit_code" Integer Plain "What it returned; null while it lives, and when a signal ended it";
            "exit_signal" Text Plain "Signal that ended it";
            "cpu_time" Double Plain "CPU time at its end, seconds";
        }
    }
    process_envs "process_envs" "Environments of processes, as they were at their start" rows 20_000 keyed 64 {
        "pid" Integer Key "Process number";
        "key" Text Identity "Name of the variable";
        "value" Text Plain "Its value";
        hidden {}
    }
    process_namespaces "process_namespaces" "Namespaces of processes, by their inodes" rows 1_000 keyed 1 {
        "pid" Integer Key "Process number";
        "cgroup_namespace" Text Plain "Control group namespace";
        "ipc_namespace" Text Plain "IPC namespace";
        "mnt_namespace" Text Plain "Mount namespace";
        "net_namespace" Text Plain "Network namespace";
        "pid_namespace" Text Plain "PID namespace";
        "user_namespace" Text Plain "User namespace";
        "uts_namespace" Text Plain "Host name namespace";
        hidden {}
    }
    process_open_sockets "process_open_sockets" "Sockets that processes hold, a row for each descriptor" rows 2_000 keyed 1 {
        "pid" Integer Key "Process number";
        "fd" BigInt Identity "Descriptor";
        "socket" BigInt Plain "Inode of the socket; the same in all processes that hold it";
        "family" Integer Plain "Address family: 1 Unix, 2 IPv4, 10 IPv6, 16 netlink";
        "protocol" Integer Plain "Protocol within the family: 6 TCP, 17 UDP";
        "local_address" Text Plain "Address that it is bound to";
        "remote_address" Text Plain "Address of the other end";
        "local_port" Integer Plain "Port that it is bound to; 0 where it has none";
        "remote_port" Integer Plain "Port of the other end; 0 without one";
        "path" Text Plain "Name of a Unix socket";
        "state" Text Plain "State of a TCP connection";
        "net_namespace" Text Plain "Network namespace that it is in (inode)";
        hidden {}
    }
    listening_ports "listening_ports" "Sockets that others reach without being asked" rows 200 keyed 1 {
        "pid" Integer Key "Process number";
        "port" Integer Plain "Port; 0 for Unix sockets";
        "protocol" Integer Plain "Protocol within the family: 6 TCP, 17 UDP";
        "family" Integer Plain "Address family: 1 Unix, 2 IPv4, 10 IPv6";
        "address" Text Plain "Address that it is bound to";
        "fd" BigInt Identity "Descriptor";
        "socket" BigInt Plain "Inode of the socket";
        "path" Text Plain "Name of a Unix socket";
        "net_namespace" Text Plain "Network namespace that it is in (inode)";
        hidden {}
    }
    process_open_files "process_open_files" "Files that processes have open" rows 10_000 keyed 64 {
        "pid" BigInt Key "Process number";
        "fd" BigInt Identity "Descriptor";
        "path" Text Plain "File; ' (deleted)' behind it when it is gone";
        hidden {}
    }
    system_info "system_info" "The machine" rows 1 keyed 1 {
        "hostname" Text Plain "Name of the host";
        "uuid" Text Plain "Identity of the machine; null where only root may read it";
        "cpu_type" Text Plain "Architecture";
        "cpu_subtype" Text Plain "Model number of the CPU";
        "cpu_brand" Text Plain "Name of the CPU";
        "cpu_physical_cores" Integer Plain "Cores";
        "cpu_logical_cores" Integer Plain "CPUs as the kernel counts them";
        "cpu_sockets" Integer Plain "Sockets";
        "cpu_microcode" Text Plain "Version of the microcode";
        "physical_memory" BigInt Plain "Memory, bytes";
        "hardware_vendor" Text Plain "Who made the machine";
        "hardware_model" Text Plain "Its model";
        "hardware_version" Text Plain "Its version";
        "hardware_serial" Text Plain "Its serial number; null where only root may read it";
        "board_vendor" Text Plain "Who made the board";
        "board_model" Text Plain "Its model";
        "board_version" Text Plain "Its version";
        "board_serial" Text Plain "Its serial number";
        "computer_name" Text Plain "Name of the host";
        "local_hostname" Text Plain "The same up to its first dot";
        hidden {}
    }
    kernel_info "kernel_info" "The kernel that runs" rows 1 keyed 1 {
        "version" Text Plain "Its release";
        "arguments" Text Plain "Its command line, but for what names image and root";
        "path" Text Plain "Its image, as the boot loader says";
        "device" Text Plain "The root device, as the boot loader says";
        hidden {}
    }
    os_version "os_version" "The distribution" rows 1 keyed 1 {
        "name" Text Plain "Its name";
        "version" Text Plain "Its version, for people";
        "major" Integer Plain "First number of the version";
        "minor" Integer Plain "Second number of the version";
        "patch" Integer Plain "Third number of the version";
        "build" Text Plain "Its build";
        "platform" Text Plain "Its short name";
        "platform_like" Text Plain "What it is like";
        "codename" Text Plain "Name of the version";
        "arch" Text Plain "Architecture";
        hidden {}
    }
    uptime "uptime" "Time since the boot" rows 1 keyed 1 {
        "days" Integer Plain "Days";
        "hours" Integer Plain "Hours beyond them";
        "minutes" Integer Plain "Minutes beyond them";
        "seconds" Integer Plain "Seconds beyond them";
        "total_seconds" BigInt Plain "All of it, in seconds";
        hidden {}
    }
    load_average "load_average" "Load averages" rows 3 keyed 1 {
        "period" Text Identity "1m, 5m or 15m";
        "average" Text Plain "The average";
        hidden {}
    }
    memory_info "memory_info" "Memory, bytes" rows 1 keyed 1 {
        "memory_total" BigInt Plain "What the kernel manages";
        "memory_free" BigInt Plain "What nothing uses";
        "memory_available" BigInt Plain "What programs could get without swapping";
        "buffers" BigInt Plain "Block device cache";
        "cached" BigInt Plain "File cache, shared memory included";
        "swap_cached" BigInt Plain "Swapped out once, and in memory again";
        "active" BigInt Plain "Used of late";
        "inactive" BigInt Plain "Not used of late";
        "swap_total" BigInt Plain "Swap space";
        "swap_free" BigInt Plain "Swap space that is not in use";
        hidden {}
    }
    system_controls "system_controls" "Kernel parameters" rows 1_000 keyed 16 {
        "name" Text Key "Its name";
        "oid" Text Plain "Empty, as on every Linux";
        "subsystem" Text Plain "The first part of the name";
        "current_value" Text Plain "Its value; null where it cannot be read, or not by who asks";
        "config_value" Text Plain "What sysctl.conf and its like say; empty where they say nothing";
        "type" Text Plain "Always string, as on every Linux";
        hidden {}
    }
    users "users" "Users of /etc/passwd, and of the name service where one is named" rows 50 keyed 16 {
        "uid" BigInt Key "User id";
        "gid" BigInt Plain "Group id";
        "uid_signed" BigInt Plain "User id as a signed number";
        "gid_signed" BigInt Plain "Group id as a signed number";
        "username" Text Group "Name";
        "description" Text Plain "What else is said of the user";
        "directory" Text Plain "Home directory";
        "shell" Text Plain "Login shell";
        "uuid" Text Plain "Null, as on every Linux";
        hidden {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_tables_have_the_same_columns() {
        assert_eq!(TABLES.len(), TABLES_OF_MANY.len());
        for (one, many) in TABLES.iter().zip(TABLES_OF_MANY) {
            assert_eq!(one.name, many.name);
            assert!(one.columns.len() <= 63, "{} has too many columns", one.name);
            let names = |table: &Table| {
                let mut names: Vec<_> = table.columns.iter().map(|column| column.name).collect();
                names.sort_unstable();
                names
            };
            assert_eq!(names(one), names(many));
            let mut once = names(one);
            once.dedup();
            assert_eq!(once, names(one), "a column of {} stands twice", one.name);
            assert!(many.columns[..2].iter().all(|column| !column.is_hidden));
        }
    }
}
