//! Options that are secrets for some programs only: `-p` is a password for `mysql`, a port for `ssh`.

/// What is known of a command line so far.
#[derive(Debug, Default)]
pub(super) struct Program {
    /// The program that takes the arguments now, if there are rules for it.
    name: Option<&'static str>,
    /// A command that rules ask for has come.
    command: Option<&'static str>,
}

/// What an argument takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// Nothing that is known.
    Nothing,
    /// A secret, from this byte on.
    Here(usize),
    /// A user and a secret, from this byte on, parted by that character.
    PairHere(usize, u8),
    /// A header, from this byte on.
    HeaderHere(usize),
    /// The next argument is a secret.
    Next,
    /// The next argument is a user and a secret, parted by that character.
    NextPair(u8),
    /// The next argument is a header.
    NextHeader,
    /// The next argument is text with assignments.
    NextText,
}

/// How an option takes its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Glued to it or next: `-pSECRET`, `-p SECRET`.
    Either,
    /// Glued to it only; alone it asks: `mysql -p`.
    Glued,
    /// Next only.
    Next,
    /// As [`How::Either`], a user and a secret parted by that character.
    Pair(u8),
    /// As [`How::Either`], a header.
    Header,
    /// Next, text with assignments.
    Text,
    /// Next, behind a word that is no option: `nmcli … password SECRET`.
    Word,
}

#[derive(Debug)]
struct Rules {
    programs: &'static [&'static str],
    /// A command of the program that must stand before: `docker login -p SECRET`, but `docker run -p 80`.
    after: Option<&'static str>,
    options: &'static [(&'static str, How)],
}

const RULES: &[Rules] = &[
    Rules {
        after: Some("login"),
        programs: &["docker", "podman", "nerdctl", "buildah", "skopeo", "helm", "crane", "oras"],
        options: &[("-p", How::Either)],
    },
    Rules {
        after: None,
        programs: &["nmcli"],
        options: &[
            ("password", How::Word),
            ("psk", How::Word),
            ("wifi-sec.psk", How::Word),
            ("802-11-wireless-security.psk", How::Word),
        ],
    },
    Rules {
        after: None,
        programs: &["aws"],
        options: &[("aws_secret_access_key", How::Word), ("aws_session_token", How::Word)],
    },
    Rules {
        after: None,
        programs: &[
            "mysql",
            "mysqldump",
            "mysqladmin",
            "mysqlimport",
            "mysqlshow",
            "mysqlcheck",
            "mysqlslap",
            "mysqlbinlog",
            "mysqlsh",
            "mysqlpump",
            "mariadb",
            "mariadb-dump",
            "mariadb-admin",
            "mariadb-backup",
            "xtrabackup",
            "mydumper",
            "myloader",
        ],
        options: &[("-p", How::Glued)],
    },
    Rules { after: None, programs: &["sshpass"], options: &[("-p", How::Either)] },
    Rules {
        after: None,
        programs: &[
            "ldapsearch",
            "ldapmodify",
            "ldapadd",
            "ldapdelete",
            "ldapwhoami",
            "ldapcompare",
            "ldappasswd",
            "ldapmodrdn",
        ],
        options: &[("-w", How::Either), ("-s", How::Next), ("-a", How::Next)],
    },
    Rules {
        after: None,
        programs: &["curl"],
        options: &[
            ("-u", How::Pair(b':')),
            ("-U", How::Pair(b':')),
            ("-H", How::Header),
            ("-b", How::Either),
            ("-d", How::Text),
        ],
    },
    Rules { after: None, programs: &["wget"], options: &[("--header", How::Header)] },
    Rules {
        after: None,
        programs: &["http", "https", "xh", "xhs"],
        options: &[("-a", How::Pair(b':')), ("--auth", How::Pair(b':'))],
    },
    Rules {
        after: None,
        programs: &["ab", "siege", "hey", "wrk", "oha", "k6", "vegeta"],
        options: &[("-A", How::Pair(b':')), ("-a", How::Pair(b':')), ("-H", How::Header)],
    },
    Rules {
        after: None,
        programs: &["redis-cli", "redis-benchmark", "valkey-cli", "keydb-cli"],
        options: &[("-a", How::Either)],
    },
    Rules {
        after: None,
        programs: &[
            "mongo",
            "mongosh",
            "mongodump",
            "mongorestore",
            "mongoexport",
            "mongoimport",
            "mongostat",
            "mongotop",
            "arangosh",
        ],
        options: &[("-p", How::Either)],
    },
    Rules {
        after: None,
        programs: &["smbclient", "rpcclient", "smbmap", "net", "smbget"],
        options: &[("-U", How::Pair(b'%'))],
    },
    Rules { after: None, programs: &["zip", "zipcloak"], options: &[("-P", How::Either)] },
    Rules { after: None, programs: &["unzip"], options: &[("-P", How::Either)] },
    Rules { after: None, programs: &["7z", "7za", "7zr", "7zz"], options: &[("-p", How::Glued)] },
    Rules {
        after: None,
        programs: &["rar", "unrar"],
        options: &[("-hp", How::Glued), ("-p", How::Glued)],
    },
    Rules {
        after: None,
        programs: &["sqlcmd", "bcp", "tsql", "osql", "isql"],
        options: &[("-P", How::Either)],
    },
    Rules {
        after: None,
        programs: &["ipmitool", "ipmi-power", "ipmipower"],
        options: &[("-P", How::Either)],
    },
    Rules {
        after: None,
        programs: &[
            "snmpget",
            "snmpwalk",
            "snmpset",
            "snmpbulkwalk",
            "snmpgetnext",
            "snmptrap",
            "snmpbulkget",
            "snmptable",
        ],
        options: &[("-A", How::Either), ("-X", How::Either), ("-c", How::Either)],
    },
    Rules {
        after: None,
        programs: &["docker", "podman", "nerdctl", "buildah", "skopeo", "helm", "crane", "oras"],
        options: &[
            ("-e", How::Text),
            ("--env", How::Text),
            ("--set", How::Text),
            ("--build-arg", How::Text),
        ],
    },
    Rules { after: None, programs: &["rdesktop"], options: &[("-p", How::Either)] },
    Rules {
        after: None,
        programs: &["xfreerdp", "xfreerdp3", "wlfreerdp"],
        options: &[("/p:", How::Glued), ("/gp:", How::Glued)],
    },
    Rules {
        after: None,
        programs: &["useradd", "usermod", "groupadd", "chpasswd"],
        options: &[("-p", How::Either)],
    },
    Rules {
        after: None,
        programs: &["openssl"],
        options: &[
            ("-k", How::Next),
            ("-K", How::Next),
            ("-hmac", How::Next),
            ("-passin", How::Next),
            ("-passout", How::Next),
            ("-pass", How::Next),
        ],
    },
    Rules {
        after: None,
        programs: &["lftp", "ncftp", "ncftpput", "ncftpget"],
        options: &[("-u", How::Pair(b',')), ("-p", How::Either)],
    },
    Rules { after: None, programs: &["pg_dump", "psql"], options: &[("-d", How::Text)] },
    Rules {
        after: None,
        programs: &["clickhouse-client", "clickhouse", "cqlsh", "influx", "vertica", "vsql"],
        options: &[("-p", How::Either)],
    },
    Rules { after: None, programs: &["cqlsh.py"], options: &[("-p", How::Either)] },
    Rules {
        after: None,
        programs: &["rabbitmqadmin", "kinit", "mosquitto_pub", "mosquitto_sub", "mqttx"],
        options: &[("-P", How::Either), ("-p", How::Next)],
    },
    Rules { after: None, programs: &["gpg", "gpg2"], options: &[("--passphrase", How::Next)] },
    Rules { after: None, programs: &["wpa_passphrase"], options: &[] },
];

fn base(argument: &[u8]) -> &[u8] {
    argument.rsplit(|byte| *byte == b'/').next().unwrap_or(argument)
}

/// What `argument` takes. A program is known by the last part of its path, also behind `sudo`, `env`,
/// `timeout 5`.
pub(super) fn takes(program: &mut Program, argument: &[u8]) -> Takes {
    let is_option = [&b"-"[..], b"/p:", b"/gp:"].iter().any(|begin| argument.starts_with(begin));
    if !is_option {
        return word(program, argument);
    }
    let rules = RULES.iter().filter(|rules| rules.is_of(program));
    rules
        .flat_map(|rules| rules.options)
        .find_map(|(option, how)| taken_by(option, *how, argument))
        .unwrap_or(Takes::Nothing)
}

impl Rules {
    fn is_of(&self, program: &Program) -> bool {
        program.name.is_some_and(|name| self.programs.contains(&name))
            && (self.after.is_none() || self.after == program.command)
    }
}

/// An argument that is no option: a program, a command of it, or a word that names a secret.
fn word(program: &mut Program, argument: &[u8]) -> Takes {
    let is_word = |option: &&(&str, How)| option.1 == How::Word && option.0.as_bytes() == argument;
    let rules = RULES.iter().filter(|rules| rules.is_of(program));
    if rules.flat_map(|rules| rules.options).any(|option| is_word(&option)) {
        return Takes::Next;
    }
    let name = base(argument);
    let known =
        RULES.iter().flat_map(|rules| rules.programs).find(|known| known.as_bytes() == name);
    if program.name.is_none() {
        program.name = known.copied();
    }
    let commands = RULES.iter().filter_map(|rules| rules.after);
    if let Some(command) = commands.into_iter().find(|command| command.as_bytes() == argument) {
        program.command = Some(command);
    }
    Takes::Nothing
}

/// What `argument` takes if it is `option`.
fn taken_by(option: &str, how: How, argument: &[u8]) -> Option<Takes> {
    let rest = argument.strip_prefix(option.as_bytes())?;
    let (at, here) = (argument.len() - rest.len(), !rest.is_empty());
    // `--header=x` is an assignment; `-passinX` is another option.
    let is_long = option.len() > 2 && option.starts_with('-') && how != How::Glued;
    if here && is_long {
        return None;
    }
    match how {
        How::Either | How::Glued if here => Some(Takes::Here(at)),
        How::Either | How::Next if !here => Some(Takes::Next),
        How::Pair(by) if here => Some(Takes::PairHere(at, by)),
        How::Pair(by) => Some(Takes::NextPair(by)),
        How::Header if here => Some(Takes::HeaderHere(at)),
        How::Header => Some(Takes::NextHeader),
        How::Text if !here => Some(Takes::NextText),
        How::Either | How::Glued | How::Next | How::Text | How::Word => None,
    }
}
