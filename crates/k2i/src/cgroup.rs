//! Where a process is placed: rules on the text of `/proc/<pid>/cgroup`.
//!
//! Container runtimes and systemd write what they run into the names of control groups; there is no
//! other trace of it that works for all of them and costs nothing. The text is a hint, not a proof:
//! whoever may create control groups may name them like a container. Where runtimes are nested, the
//! innermost counts; their monitors (`conmon`, `lxc.monitor`) are outside of the container they watch.

use std::borrow::Cow;

/// A container runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    Docker,
    /// By way of its CRI plugin, nerdctl or its default namespaces.
    Containerd,
    CriO,
    Podman,
    Lxc,
    Nspawn,
    /// Some CRI runtime of a Kubernetes node, which did not put its name into the path.
    Cri,
}

impl Runtime {
    /// Its name in answers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Runtime::Docker => "docker",
            Runtime::Containerd => "containerd",
            Runtime::CriO => "cri-o",
            Runtime::Podman => "podman",
            Runtime::Lxc => "lxc",
            Runtime::Nspawn => "nspawn",
            Runtime::Cri => "cri",
        }
    }
}

/// What the control groups of a process say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Placement<'a> {
    /// The path in the unified hierarchy; where that is the root, the longest of the others.
    pub(crate) path: &'a [u8],
    /// Who runs the container; `None` outside of one, and for an id whose runtime is not to be seen.
    pub(crate) runtime: Option<Runtime>,
    /// 64 hexadecimal digits as a rule; a name for lxc and nspawn.
    pub(crate) container_id: Option<Cow<'a, [u8]>>,
    /// UID of the Kubernetes pod, with dashes. Static pods have 32 digits without.
    pub(crate) pod: Option<String>,
    /// The innermost systemd service or scope.
    pub(crate) unit: Option<&'a [u8]>,
    /// The innermost systemd slice.
    pub(crate) slice: Option<&'a [u8]>,
}

/// Length of a container id of docker, containerd, CRI-O and podman.
const ID_DIGITS: usize = 64;

/// Digits of an id that people see and type; docker's choice, and unique enough on one host.
const SHORT_ID_DIGITS: usize = 12;

impl Placement<'_> {
    /// `runtime:id` with the id cut to 12 digits, or `runtime:name`; `container:id` without a runtime.
    pub(crate) fn container(&self) -> Option<String> {
        let id = self.container_id.as_deref()?;
        let id = if is_id(id) { &id[..SHORT_ID_DIGITS] } else { id };
        let runtime = self.runtime.map_or("container", Runtime::name);
        Some(format!("{runtime}:{}", String::from_utf8_lossy(id)))
    }
}

/// Reads the placement from lines of `number:controllers:path`. Lines of another form say nothing.
pub(crate) fn placement(text: &[u8]) -> Placement<'_> {
    let path = path(text);
    let mut placement = Placement { path, ..Placement::default() };
    // Where systemd keeps the unified hierarchy to itself, only the others know of a container.
    let others = lines(text).map(|(_, other)| other).filter(|other| *other != path);
    let telling = std::iter::once(path).chain(others).find(|path| placement.read_container(path));
    for component in components(telling.unwrap_or(path)) {
        if component.ends_with(b".slice") {
            placement.slice = Some(unit_name(component));
        } else if component.ends_with(b".service") || component.ends_with(b".scope") {
            placement.unit = Some(unit_name(component));
        }
    }
    placement
}

fn path(text: &[u8]) -> &[u8] {
    let mut longest: &[u8] = b"/";
    for (unified, path) in lines(text) {
        if unified && path != b"/" {
            return path;
        }
        if path.len() > longest.len() {
            longest = path;
        }
    }
    longest
}

/// The path of each line, and whether it is the unified hierarchy's.
fn lines(text: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut parts = line.splitn(3, |byte| *byte == b':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        path.starts_with(b"/").then_some((number == b"0" && controllers.is_empty(), path))
    })
}

/// The names in a path from the outside in, without the kernel's mark on a removed group.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    path.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
}

impl<'a> Placement<'a> {
    /// Takes container and pod from `path`; whether there was either.
    fn read_container(&mut self, path: &'a [u8]) -> bool {
        let mut parent: &[u8] = b"";
        let mut in_ecs = false;
        for component in components(path) {
            in_ecs |= component == b"ecs";
            if let Some(pod) = pod(component) {
                self.pod = Some(pod);
            }
            if let Some((runtime, id)) = container(component, parent, in_ecs) {
                (self.runtime, self.container_id) = (runtime, Some(id));
            }
            parent = component;
        }
        self.container_id.is_some() || self.pod.is_some()
    }
}

/// The prefixes of an id in the name of a control group. Monitors (`libpod-conmon-…`) have no id right
/// behind one of them.
const PREFIXES: [(&[u8], Runtime); 6] = [
    (b"docker", Runtime::Docker),
    (b"cri-containerd", Runtime::Containerd),
    (b"nerdctl", Runtime::Containerd),
    (b"crio", Runtime::CriO),
    (b"libpod", Runtime::Podman),
    (b"libpod-payload", Runtime::Podman),
];

fn container<'a>(
    component: &'a [u8],
    parent: &[u8],
    in_ecs: bool,
) -> Option<(Option<Runtime>, Cow<'a, [u8]>)> {
    let name = component.strip_suffix(b".scope").unwrap_or(component);
    if let Some((front, id)) = name.split_at_checked(name.len().saturating_sub(ID_DIGITS))
        && is_id(id)
    {
        let runtime = match front.split_last() {
            None => runtime_of_bare_id(parent, in_ecs),
            // `<slice>:<prefix>:<id>` is a systemd path handed to a runtime that took it for a name.
            Some((b'-' | b':', prefix)) => {
                let prefix = prefix.rsplit(|byte| *byte == b':').next().unwrap_or(prefix);
                Some(PREFIXES.iter().find(|(known, _)| *known == prefix)?.1)
            }
            Some(_) => return None,
        };
        return Some((runtime, id.into()));
    }
    if in_ecs && is_fargate_id(name) {
        return Some((Some(Runtime::Containerd), name.into()));
    }
    if let Some(name) = component.strip_prefix(b"lxc.payload.") {
        return Some((Some(Runtime::Lxc), name.into()));
    }
    if matches!(parent, b"lxc" | b"lxc.payload") {
        return Some((Some(Runtime::Lxc), component.into()));
    }
    let instance = component.strip_prefix(b"systemd-nspawn@");
    if let Some(name) = instance.and_then(|instance| instance.strip_suffix(b".service")) {
        return Some((Some(Runtime::Nspawn), unescape(name)));
    }
    let machine = component.strip_prefix(b"machine-")?.strip_suffix(b".scope")?;
    let machine = unescape(machine);
    match libvirt_driver(&machine) {
        None => Some((Some(Runtime::Nspawn), machine)),
        Some(b"lxc") => Some((Some(Runtime::Lxc), machine)),
        // A virtual machine.
        Some(_) => None,
    }
}

/// Who names a group by the id alone. Below an unknown parent (docker's `--cgroup-parent`, another
/// namespace of containerd) it cannot be told.
fn runtime_of_bare_id(parent: &[u8], in_ecs: bool) -> Option<Runtime> {
    match parent {
        b"docker" => Some(Runtime::Docker),
        b"libpod_parent" => Some(Runtime::Podman),
        b"default" | b"k8s.io" => Some(Runtime::Containerd),
        _ if pod(parent).is_some() => Some(Runtime::Cri),
        _ if in_ecs => Some(Runtime::Docker),
        _ => None,
    }
}

/// The pod of a group `pod<uid>` or `…-pod<uid>.slice`, also with more behind a colon.
fn pod(component: &[u8]) -> Option<String> {
    let name = component.split(|byte| *byte == b':').next().unwrap_or(component);
    let name = name.strip_suffix(b".slice").unwrap_or(name);
    // systemd takes `-` for a step down, so the kubelet writes the UID with `_`.
    let uid = [36, 32].into_iter().find_map(|digits| {
        let (front, uid) = name.split_at_checked(name.len().checked_sub(digits)?)?;
        (front == b"pod" || front.ends_with(b"-pod")).then_some(uid)
    })?;
    let is_dash = |index: usize| uid.len() == 36 && matches!(index, 8 | 13 | 18 | 23);
    let fits = |(index, byte): (usize, &u8)| {
        if is_dash(index) { matches!(byte, b'-' | b'_') } else { byte.is_ascii_hexdigit() }
    };
    let text = uid.iter().map(|byte| if *byte == b'_' { '-' } else { char::from(*byte) });
    uid.iter().enumerate().all(fits).then(|| text.collect())
}

fn is_id(text: &[u8]) -> bool {
    text.len() == ID_DIGITS && text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// `<task>-<number>`: 32 hexadecimal digits and up to 20 decimal ones.
fn is_fargate_id(name: &[u8]) -> bool {
    let Some((task, [b'-', number @ ..])) = name.split_at_checked(32) else { return false };
    task.iter().all(u8::is_ascii_hexdigit)
        && matches!(number.len(), 1..=20)
        && number.iter().all(u8::is_ascii_digit)
}

/// The driver in a machine name that libvirt made: `qemu-3-name`.
fn libvirt_driver(machine: &[u8]) -> Option<&[u8]> {
    let mut parts = machine.splitn(3, |byte| *byte == b'-');
    let (driver, number, _name) = (parts.next()?, parts.next()?, parts.next()?);
    let known = matches!(driver, b"qemu" | b"lxc" | b"xen" | b"bhyve" | b"ch");
    (known && !number.is_empty() && number.iter().all(u8::is_ascii_digit)).then_some(driver)
}

/// The name of a unit as `systemctl` shows it: its escapes are part of it. A first `_` only keeps the
/// group apart from the kernel's own files.
fn unit_name(component: &[u8]) -> &[u8] {
    component.strip_prefix(b"_").unwrap_or(component)
}

/// A name without systemd's escapes: `\x2d` is a dash, and a first `_` keeps a name apart from the
/// kernel's own files.
fn unescape(name: &[u8]) -> Cow<'_, [u8]> {
    let name = name.strip_prefix(b"_").unwrap_or(name);
    if !name.contains(&b'\\') {
        return name.into();
    }
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, tail @ ..] = rest {
        let escape = |high: u8, low: u8| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            Some((digit(high)? * 16 + digit(low)?) as u8)
        };
        let byte = match *rest {
            [b'\\', b'x', high, low, ..] => escape(high, low),
            _ => None,
        };
        plain.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &rest[4..] } else { tail };
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "5f1c0e6d2a7b4f0893ad7e1b60c2d4e8f9a1b3c5d7e9f1a3b5c7d9e1f3a5b7c9";
    const B: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";
    const UID: &str = "9f8e7d6c-5b4a-3928-1706-f5e4d3c2b1a0";

    /// A placement as one line: `container pod unit slice`, `-` for what is not there.
    fn read(text: &str) -> String {
        let place = placement(text.as_bytes());
        let show = |part: Option<&[u8]>| match part {
            Some(part) => String::from_utf8_lossy(part).into_owned(),
            None => "-".to_owned(),
        };
        let dash = || "-".to_owned();
        format!(
            "{} {} {} {}",
            place.container().unwrap_or_else(dash),
            place.pod.clone().unwrap_or_else(dash),
            show(place.unit),
            show(place.slice)
        )
    }

    /// Fills `A`, `B`, `UID` and `U_I_D` into a sample.
    fn fill(sample: &str) -> String {
        let underscored = UID.replace('-', "_");
        let filled = sample.replace("<U_I_D>", &underscored).replace("<UID>", UID);
        filled.replace("<A>", A).replace("<B>", B)
    }

    #[test]
    fn paths_of_the_unified_hierarchy() {
        let cases = [
            ("/", "- - - -"),
            ("/init.scope", "- - init.scope -"),
            ("/system.slice/nginx.service", "- - nginx.service system.slice"),
            ("/system.slice/nginx.service (deleted)", "- - nginx.service system.slice"),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                "- - getty@tty1.service system-getty.slice",
            ),
            (
                "/system.slice/systemd-fsck@dev-disk-by\\x2dlabel-EFI.service",
                "- - systemd-fsck@dev-disk-by\\x2dlabel-EFI.service system.slice",
            ),
            ("/_cpu.service", "- - cpu.service -"),
            ("/user.slice/user-1000.slice/session-3.scope", "- - session-3.scope user-1000.slice"),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope",
                "- - vte-spawn-1.scope app-org.gnome.Terminal.slice",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope",
                "- - init.scope user-1000.slice",
            ),
            ("/../../system.slice/cron.service", "- - cron.service system.slice"),
            // Docker, with either driver, rootless, and with systemd inside.
            (
                "/system.slice/docker-<A>.scope",
                "docker:5f1c0e6d2a7b - docker-<A>.scope system.slice",
            ),
            ("/docker/<A>", "docker:5f1c0e6d2a7b - - -"),
            (
                "/docker/<A>/system.slice/sshd.service",
                "docker:5f1c0e6d2a7b - sshd.service system.slice",
            ),
            ("/docker/<A>/docker/<B>", "docker:0a1b2c3d4e5f - - -"),
            (
                "/system.slice/docker-<A>.scope/docker/<B>/init",
                "docker:0a1b2c3d4e5f - docker-<A>.scope system.slice",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-<A>.scope",
                "docker:5f1c0e6d2a7b - docker-<A>.scope user.slice",
            ),
            ("/system.slice/docker.service", "- - docker.service system.slice"),
            ("/actions_job/<A>", "container:5f1c0e6d2a7b - - -"),
            // Kubernetes.
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<U_I_D>.slice/cri-containerd-<A>.scope",
                "containerd:5f1c0e6d2a7b <UID> cri-containerd-<A>.scope kubepods-burstable-pod<U_I_D>.slice",
            ),
            (
                "/kubepods.slice/kubepods-pod<U_I_D>.slice/crio-<A>.scope",
                "cri-o:5f1c0e6d2a7b <UID> crio-<A>.scope kubepods-pod<U_I_D>.slice",
            ),
            (
                "/kubepods.slice/kubepods-pod<U_I_D>.slice/crio-<A>.scope/container",
                "cri-o:5f1c0e6d2a7b <UID> crio-<A>.scope kubepods-pod<U_I_D>.slice",
            ),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<U_I_D>.slice/crio-conmon-<A>.scope",
                "- <UID> crio-conmon-<A>.scope kubepods-besteffort-pod<U_I_D>.slice",
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<U_I_D>.slice/docker-<A>.scope",
                "docker:5f1c0e6d2a7b <UID> docker-<A>.scope kubepods-burstable-pod<U_I_D>.slice",
            ),
            ("/kubepods/burstable/pod<UID>/<A>", "cri:5f1c0e6d2a7b <UID> - -"),
            ("/kubepods/besteffort/pod<UID>/crio-<A>", "cri-o:5f1c0e6d2a7b <UID> - -"),
            (
                "/kubepods/pod5e2c1d0b9a8f7e6d5c4b3a2918070605/<A>",
                "cri:5f1c0e6d2a7b 5e2c1d0b9a8f7e6d5c4b3a2918070605 - -",
            ),
            ("/kubepods/burstable/pod<UID>/<A>/docker/<B>", "docker:0a1b2c3d4e5f <UID> - -"),
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod<U_I_D>.slice/cri-containerd-<A>.scope",
                "containerd:5f1c0e6d2a7b <UID> cri-containerd-<A>.scope kubelet-kubepods-besteffort-pod<U_I_D>.slice",
            ),
            (
                "/system.slice/containerd.service/kubepods-burstable-pod<U_I_D>.slice:cri-containerd:<A>",
                "containerd:5f1c0e6d2a7b <UID> containerd.service system.slice",
            ),
            ("/kubepods.slice/kubepods-podnonsense.slice", "- - - kubepods-podnonsense.slice"),
            ("/kubepods/pod<UID>x/y", "- - - -"),
            // Podman: rootful, rootless, cgroupfs, and its monitor.
            (
                "/machine.slice/libpod-<A>.scope/container",
                "podman:5f1c0e6d2a7b - libpod-<A>.scope machine.slice",
            ),
            (
                "/machine.slice/machine-libpod_pod_<B>.slice/libpod-<A>.scope",
                "podman:5f1c0e6d2a7b - libpod-<A>.scope machine-libpod_pod_<B>.slice",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-<A>.scope/container",
                "podman:5f1c0e6d2a7b - libpod-<A>.scope user.slice",
            ),
            (
                "/system.slice/web.service/libpod-payload-<A>",
                "podman:5f1c0e6d2a7b - web.service system.slice",
            ),
            ("/libpod_parent/libpod-<A>", "podman:5f1c0e6d2a7b - - -"),
            ("/machine.slice/libpod-conmon-<A>.scope", "- - libpod-conmon-<A>.scope machine.slice"),
            ("/libpod_parent/conmon", "- - - -"),
            ("/docker/<A>/libpod_parent/libpod-conmon-<B>", "docker:5f1c0e6d2a7b - - -"),
            // containerd by other ways.
            (
                "/system.slice/nerdctl-<A>.scope",
                "containerd:5f1c0e6d2a7b - nerdctl-<A>.scope system.slice",
            ),
            ("/default/<A>", "containerd:5f1c0e6d2a7b - - -"),
            ("/default/redis", "- - - -"),
            ("/ecs/7d0a4cb8f1e94bb2a95a5b9f2bd6d9aa/<A>", "docker:5f1c0e6d2a7b - - -"),
            (
                "/ecs/7d0a4cb8f1e94bb2a95a5b9f2bd6d9aa/7d0a4cb8f1e94bb2a95a5b9f2bd6d9aa-1234567890",
                "containerd:7d0a4cb8f1e94bb2a95a5b9f2bd6d9aa-1234567890 - - -",
            ),
            // Machines.
            (
                "/lxc.payload.my-box/system.slice/ssh.service",
                "lxc:my-box - ssh.service system.slice",
            ),
            ("/lxc.payload/web/init.scope", "lxc:web - init.scope -"),
            ("/lxc/101/ns/init.scope", "lxc:101 - init.scope -"),
            ("/lxc.monitor.my-box", "- - - -"),
            ("/lxc.monitor/web", "- - - -"),
            (
                "/machine.slice/machine-deb\\x2d12.scope/payload/system.slice/cron.service",
                "nspawn:deb-12 - cron.service system.slice",
            ),
            (
                "/machine.slice/systemd-nspawn@web.service/payload",
                "nspawn:web - systemd-nspawn@web.service machine.slice",
            ),
            (
                "/machine.slice/machine-qemu\\x2d3\\x2dvm.scope/libvirt/emulator",
                "- - machine-qemu\\x2d3\\x2dvm.scope machine.slice",
            ),
            (
                "/machine.slice/machine-lxc\\x2d7\\x2dbox.scope",
                "lxc:lxc-7-box - machine-lxc\\x2d7\\x2dbox.scope machine.slice",
            ),
            // Nothing of the kind.
            ("/docker/5F1C", "- - - -"),
            ("/docker/<A>0", "- - - -"),
            ("/x-<A>", "- - - -"),
        ];
        for (path, want) in cases {
            let path = fill(path);
            assert_eq!(read(&format!("0::{path}\n")), fill(want), "for {path}");
            let text = format!("0::{path}\n");
            assert_eq!(placement(text.as_bytes()).path, path.as_bytes());
        }
    }

    #[test]
    fn several_hierarchies() {
        let cases = [
            // Docker on the first version, cgroupfs driver.
            (
                "12:pids:/docker/<A>\n11:cpu,cpuacct:/docker/<A>\n1:name=systemd:/docker/<A>\n",
                "/docker/<A>",
                "docker:5f1c0e6d2a7b - - -",
            ),
            // Kubernetes on the first version, systemd driver.
            (
                "11:memory:/kubepods.slice/kubepods-pod<U_I_D>.slice/docker-<A>.scope\n2:rdma:/\n1:name=systemd:/kubepods.slice/kubepods-pod<U_I_D>.slice/docker-<A>.scope\n",
                "/kubepods.slice/kubepods-pod<U_I_D>.slice/docker-<A>.scope",
                "docker:5f1c0e6d2a7b <UID> docker-<A>.scope kubepods-pod<U_I_D>.slice",
            ),
            // Hybrid: the unified hierarchy knows of the daemon alone.
            (
                "12:rdma:/\n11:devices:/docker/<A>\n1:name=systemd:/docker/<A>\n0::/system.slice/containerd.service\n",
                "/system.slice/containerd.service",
                "docker:5f1c0e6d2a7b - - -",
            ),
            // Hybrid: a service and a session.
            (
                "5:memory:/system.slice/cron.service\n4:cpu,cpuacct:/\n1:name=systemd:/system.slice/cron.service\n0::/system.slice/cron.service\n",
                "/system.slice/cron.service",
                "- - cron.service system.slice",
            ),
            (
                "5:pids:/user.slice/user-0.slice/session-1.scope\n4:cpu:/user.slice\n0::/\n",
                "/user.slice/user-0.slice/session-1.scope",
                "- - session-1.scope user-0.slice",
            ),
            (
                "11:freezer:/lxc/box\n1:name=systemd:/lxc/box/init.scope\n",
                "/lxc/box/init.scope",
                "lxc:box - init.scope -",
            ),
            ("9:name=systemd:/\n8:pids:/\n0::/\n", "/", "- - - -"),
            ("", "/", "- - - -"),
            ("nonsense\n1:\n:::\n0::relative\n", "/", "- - - -"),
            ("0::/a:b:c/d", "/a:b:c/d", "- - - -"),
        ];
        for (text, path, want) in cases {
            let text = fill(text);
            assert_eq!(placement(text.as_bytes()).path, fill(path).as_bytes(), "for {text}");
            assert_eq!(read(&text), fill(want), "for {text}");
        }
    }

    #[test]
    fn names_that_are_no_text() {
        let place = placement(b"0::/lxc.payload.\xff\xfe/\xff\\x2d\\xzz\\x2.service\n");
        assert_eq!(place.container(), Some("lxc:\u{fffd}\u{fffd}".to_owned()));
        assert_eq!(place.unit, Some(&b"\xff\\x2d\\xzz\\x2.service"[..]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(text: Vec<u8>) {
            placement(&text).container();
        }

        #[test]
        fn any_path_of_known_parts_is_read(parts in prop::collection::vec(prop::sample::select(vec![
            "docker", "lxc", "ecs", "pod", "kubepods", "<A>", "docker-<A>.scope", "libpod-", ".scope",
            "machine-.scope", "machine-\\x2d\\x", "systemd-nspawn@.service", "lxc.payload.", "a-pod<U_I_D>.slice",
            "pod<UID>", ":", "x:cri-containerd:<A>", "_", "\\", " (deleted)", "..", "",
        ]), 0..8), join in "[/:-]") {
            let text = format!("0::/{}\n", fill(&parts.join(&join)));
            let place = placement(text.as_bytes());
            prop_assert!(place.runtime.is_none() || place.container_id.is_some());
            place.container();
        }
    }
}
