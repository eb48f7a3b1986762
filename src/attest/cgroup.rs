//! What the control groups of a process name (`/proc/PID/cgroup`, cgroup v1 and v2).
//!
//! Whoever is given a control group may make others below it, under names of its choosing. So names are read from the
//! outside in: what stands below a user's own manager (`user@N.service`) names nothing, and what stands below a
//! container or a unit is only ever added to that container's or unit's name, never takes its place.

/// The paths a process is in, each once, without the root (which names nothing).
pub(super) fn paths(text: &str) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        if !matches!(path, "" | "/") && !paths.iter().any(|known| known == path) {
            paths.push(path.to_owned());
        }
    }
    paths
}

/// The container, else the pod, else the systemd service that the paths name, as an instance. A unit's name is only
/// unique until the next boot, so it comes with the boot id; the other two are random.
pub(super) fn instance(paths: &[String], boot: &str) -> Option<String> {
    let all: Vec<Named> = paths.iter().map(|path| Named::read(path)).collect();
    // With v1 hierarchies beside v2, some show the container and others only the engine that runs it.
    let container = all.iter().find(|named| !named.containers.is_empty()).map(|named| {
        let names: Vec<&str> = named.unit.into_iter().chain(named.containers.iter().copied()).collect();
        format!("container:{}", names.join("/"))
    });
    let pod = || all.iter().find_map(|named| named.pod.as_ref()).map(|pod| format!("pod:{pod}"));
    let unit = || all.iter().find_map(|named| named.unit).map(|unit| format!("unit:{boot}:{unit}"));
    container.or_else(pod).or_else(unit).filter(|instance| instance.len() <= 512)
}

/// The names in one path.
#[derive(Default)]
struct Named<'a> {
    unit: Option<&'a str>,
    pod: Option<String>,
    containers: Vec<&'a str>,
}

impl<'a> Named<'a> {
    fn read(path: &'a str) -> Self {
        let mut named = Self::default();
        for segment in path.split('/') {
            if segment.starts_with("user@") {
                break;
            }
            if let Some(id) = container_id(segment) {
                named.containers.push(id);
            } else if !named.containers.is_empty() {
                // Units and pods inside a container are the container's own affair.
            } else if let Some(uid) = pod_uid(segment) {
                named.pod.get_or_insert(uid);
            } else if segment.strip_suffix(".service").is_some_and(|name| !name.is_empty()) {
                named.unit.get_or_insert(segment);
            }
        }
        named
    }
}

/// `<id>`, `docker-<id>.scope`, `cri-containerd-<id>.scope`, `…:cri-containerd:<id>`; an id is 64 hexadecimal digits.
fn container_id(segment: &str) -> Option<&str> {
    let segment = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = segment.rsplit(['-', ':']).next()?;
    let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (id.len() == 64 && id.bytes().all(hexadecimal)).then_some(id)
}

/// `pod<uid>`, `kubepods-burstable-pod<uid>.slice`; systemd writes the `-` of a uid as `_`.
fn pod_uid(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".slice").unwrap_or(segment);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.strip_prefix("kubepods")?.rsplit_once("-pod")?.1,
    };
    let uid = uid.replace('_', "-");
    let grouped = uid.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let hexadecimal = uid.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    // Pods that a node runs by itself have 32 digits and no `-`.
    (hexadecimal && (grouped || (uid.len() == 32 && !uid.contains('-')))).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "b123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const POD: &str = "8dbc9d2a-6a3a-4f4e-9d0c-0123456789ab";

    fn of(text: &str) -> Option<String> {
        instance(&paths(text), "boot")
    }

    #[test]
    fn containers_pods_and_units_are_named() {
        let slice = format!("kubepods-burstable-pod{}.slice", POD.replace('-', "_"));
        for (text, instance) in [
            (format!("0::/system.slice/docker-{A}.scope"), format!("container:{A}")),
            (format!("12:memory:/docker/{A}\n1:name=systemd:/docker/{A}"), format!("container:{A}")),
            (format!("0::/../{A}"), format!("container:{A}")),
            (format!("0::/kubepods.slice/{slice}/cri-containerd-{A}.scope"), format!("container:{A}")),
            (
                format!("0::/system.slice/containerd.service/{slice}:cri-containerd:{A}"),
                format!("container:containerd.service/{A}"),
            ),
            (format!("0::/docker/{A}/docker/{B}"), format!("container:{A}/{B}")),
            (format!("0::/docker/{A}/system.slice/x.service"), format!("container:{A}")),
            (format!("0::/system.slice/containerd.service\n4:pids:/docker/{A}"), format!("container:{A}")),
            (format!("0::/kubepods/besteffort/pod{POD}/"), format!("pod:{POD}")),
            (format!("0::/kubepods.slice/{slice}"), format!("pod:{POD}")),
            ("0::/system.slice/agent@1.service".into(), "unit:boot:agent@1.service".into()),
            ("0::/system.slice/agent.service/sub/other.service".into(), "unit:boot:agent.service".into()),
            ("0::/\n1:name=systemd:/system.slice/a.service".into(), "unit:boot:a.service".into()),
        ] {
            assert_eq!(of(&text), Some(instance), "{text}");
        }
    }

    #[test]
    fn what_names_nothing_is_not_guessed() {
        for text in [
            String::new(),
            "0::/".into(),
            "0::/user.slice/user-1000.slice/session-3.scope".into(),
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service".into(),
            format!("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope"),
            "0::/system.slice/run-u1.scope".into(),
            "0::/init.scope".into(),
            "4:memory:/jobs/62d03db232be8336de96be01925e149b".into(),
            "0::/kubepods/podcast".into(),
            "0::/.service".into(),
            format!("0::/docker/{}", A.to_uppercase()),
        ] {
            assert_eq!(of(&text), None, "{text}");
        }
    }
}
