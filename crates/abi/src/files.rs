//! The columns of open files: what `/v2/files`, `/v2/proc/{pid}/files` and `kumo lsof` filter and show.

use crate::of_process::of_process;

of_process! {
    /// Open files.
    FileColumn, FILES "files";
    first { Dc Host Id Pid Comm }
    own {
        Fd "fd" [] Int None "FD" "Number of the descriptor";
        Type "type" ["kind"] Text None "TYPE" "file, dir, char, block, fifo, socket, link, or anon for what has no file behind it";
        Mode "mode" ["access"] Text None "MODE" "r, w or rw; - for one that is neither, such as a mere place";
        Flags "flags" [] Text None "FLAGS" "Flags of open(2), octal, as in fdinfo";
        Offset "offset" ["pos"] Int Bytes "OFFSET" "Where the next read or write is; null where there is no such place";
        Size "size" [] Int Bytes "SIZE" "Size of a file; null of others. Never asked of a server far away";
        Links "links" ["nlink"] Int None "LINKS" "Names that the file has; 0 when it was deleted and is only held open";
        Inode "inode" ["ino"] Int None "INODE" "Number of the file on its device, or of the socket or pipe";
        Device "device" ["dev"] Text None "DEVICE" "Device that the file is on, as MAJOR:MINOR; null of others";
        Target "target" [] Text None "TARGET" "Path of the file, ' (deleted)' behind it when it is gone; else what it is, such as `pipe:[4711]`";
        Socket "socket" [] Text None "SOCKET" "What socket it is, such as tcp 10.0.0.1:22 -> 10.0.0.9:50122 ESTABLISHED; null of others";
    }
    more {
        Ppid User Cmdline Cgroup Container ContainerRuntime ContainerId Pod Unit Slice
    }
}

/// The columns of an answer when a query names none.
pub const FILES_DEFAULT: &str = "pid,comm,fd,type,mode,offset,size,links,target,socket";
