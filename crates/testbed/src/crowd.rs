//! Thousands of processes with command lines like those of a real server.

use crate::role::Role;
use crate::zoo::Animal;

/// What a crowd is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Every how manyth process has four threads; 0 for none.
    pub threaded_each: usize,
    /// Every how manyth is busy for a hundredth of the time; 0 for none.
    pub busy_each: usize,
}

impl Default for Mix {
    /// One in twenty has threads; one in 300 is busy: 3,000 take a tenth of a CPU.
    fn default() -> Mix {
        Mix { threaded_each: 20, busy_each: 300 }
    }
}

/// Many sleeping processes; all are gone when it is dropped.
#[derive(Debug)]
pub struct Crowd {
    keeper: Animal,
    pids: Vec<i32>,
}

impl Crowd {
    pub(crate) fn spawn(count: usize, mix: Mix) -> Crowd {
        let Mix { threaded_each, busy_each } = mix;
        let role = Role::Crowd { count, threaded_each, busy_each };
        let (keeper, pids) = Animal::spawn_many(&role, &[b"kumo-zoo-crowd"]);
        assert_eq!(pids.len(), count, "the crowd's keeper names every process");
        Crowd { keeper, pids }
    }

    /// Their process numbers; the `i`th has the arguments [`crowd_arguments`]`(i)`.
    pub fn pids(&self) -> &[i32] {
        &self.pids
    }

    /// The process that is their parent.
    pub fn keeper_pid(&self) -> i32 {
        self.keeper.keeper_pid()
    }
}

/// The argument vector of the `i`th process of a crowd: 30 to 300 bytes, no two alike.
pub fn crowd_arguments(i: usize) -> Vec<String> {
    let port = 1024 + i % 60_000;
    let line = match i % 8 {
        0 => format!("nginx: worker process shard-{i} (upstream 10.0.{}.{})", i / 250, i % 250),
        1 => format!(
            "/usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/main-{i} \
             -c config_file=/etc/postgresql/15/main-{i}/postgresql.conf -p {port}"
        ),
        2 => format!(
            "/usr/bin/java -Xms256m -Xmx2g -XX:+UseG1GC -XX:MaxGCPauseMillis=200 \
             -Dcom.example.instance={i} -Dlog4j.configurationFile=/etc/app/log4j2.xml \
             -cp /srv/app/lib/*:/srv/app/conf com.example.orders.Main --port {port} \
             --cluster 10.1.0.{},10.1.1.{} --data /var/lib/orders/{i}",
            i % 250,
            i % 250
        ),
        3 => format!("/usr/bin/python3 -m gunicorn shop.wsgi:app -w 4 -b 127.0.0.1:{port} -n {i}"),
        4 => format!("php-fpm: pool customer-{i} listening on /run/php/{i}.sock"),
        5 => format!("sshd: user{i} [priv] from 192.0.2.{}", i % 254),
        6 => format!(
            "/usr/bin/node --max-old-space-size=512 /srv/api/current/server.js --tenant \
             tenant-{i} --listen 0.0.0.0:{port} --redis redis://127.0.0.1:6379/{}",
            i % 16
        ),
        _ => format!("/usr/sbin/worker --queue=mail-{i} --concurrency=2 --log-level=warn"),
    };
    line.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn command_lines_are_distinct_and_of_a_usual_length() {
        let lines: BTreeSet<String> = (0..10_000).map(|i| crowd_arguments(i).join(" ")).collect();
        assert_eq!(lines.len(), 10_000);
        for line in lines {
            assert!((30..=300).contains(&line.len()), "{} bytes: {line}", line.len());
        }
    }
}
