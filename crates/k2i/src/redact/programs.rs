//! What is a secret for some programs only: `-p` is a password for `mysql`, a port for `ssh`; the last
//! word of `htpasswd -b` is one, and of `vault login`.

/// Most words that are remembered: no rule looks at more.
const WORDS_MAX: usize = 16;

/// What is known of a command line so far.
#[derive(Debug, Default)]
pub(super) struct Program<'a> {
    /// The program that takes the arguments now, if there are rules for it.
    name: Option<&'static str>,
    /// Its words so far that are no options.
    words: Vec<&'a [u8]>,
    /// Its single letters so far: `-cb` is two.
    letters: Vec<u8>,
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
    /// The next argument is a secret, unless it is an option.
    NextValue,
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
    /// None, whatever its name says.
    Plain,
}

use How::{Either, Glued, Header, Next, Pair, Plain, Text};

/// Options of some programs.
struct Rules {
    programs: &'static [&'static str],
    /// A word that must stand before: `docker login -p SECRET`, but `docker run -p 80`.
    after: Option<&'static str>,
    options: &'static [(&'static str, How)],
}

const fn rules(
    programs: &'static [&'static str],
    options: &'static [(&'static str, How)],
) -> Rules {
    Rules { programs, after: None, options }
}

const fn rules_after(
    programs: &'static [&'static str],
    after: &'static str,
    options: &'static [(&'static str, How)],
) -> Rules {
    Rules { programs, after: Some(after), options }
}

const CONTAINERS: &[&str] =
    &["docker", "podman", "nerdctl", "buildah", "skopeo", "crane", "oras", "helm", "oc", "kubectl"];

const SNMP: &[&str] = &[
    "snmpget",
    "snmpwalk",
    "snmpset",
    "snmpbulkwalk",
    "snmpgetnext",
    "snmptrap",
    "snmpbulkget",
    "snmptable",
    "snmpinform",
    "snmpstatus",
    "snmpdelta",
    "snmptest",
];

const LDAP: &[&str] = &[
    "ldapsearch",
    "ldapmodify",
    "ldapadd",
    "ldapdelete",
    "ldapwhoami",
    "ldapcompare",
    "ldappasswd",
    "ldapmodrdn",
    "ldapexop",
];

const RULES: &[Rules] = &[
    rules_after(CONTAINERS, "login", &[("-p", Either)]),
    rules(
        CONTAINERS,
        &[
            ("-e", Text),
            ("--env", Text),
            ("--env-add", Text),
            ("--set", Text),
            ("--set-string", Text),
            ("--build-arg", Text),
            ("--creds", Pair(b':')),
            ("--src-creds", Pair(b':')),
            ("--dest-creds", Pair(b':')),
            ("--bearer-token", Next),
        ],
    ),
    rules(
        &[
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
            "mysql_upgrade",
            "mysqlhotcopy",
            "mysqlrepair",
            "mysqloptimize",
            "mysqlanalyze",
            "mariadb",
            "mariadb-dump",
            "mariadb-admin",
            "mariadb-backup",
            "mariadb-check",
            "mariadb-import",
            "mariadb-show",
            "mariadb-binlog",
            "xtrabackup",
            "mydumper",
            "myloader",
            "mytop",
            "pt-query-digest",
            "pt-table-checksum",
        ],
        &[("-p", Glued)],
    ),
    rules(&["mysqlsh"], &[("--uri", Pair(b':')), ("-u", Pair(b':'))]),
    rules(&["sshpass", "rdesktop"], &[("-p", Either)]),
    rules(LDAP, &[("-w", Either), ("-s", Next), ("-a", Next)]),
    rules(
        &["curl"],
        &[
            ("-u", Pair(b':')),
            ("-U", Pair(b':')),
            ("-H", Header),
            ("--proxy-header", Header),
            ("-b", Either),
            ("-d", Text),
            ("-E", Pair(b':')),
            ("--cert", Pair(b':')),
            ("--proxy-cert", Pair(b':')),
            ("-x", Text),
            ("--oauth2-bearer", Next),
            ("--aws-sigv4", Text),
        ],
    ),
    rules(
        &["wget", "wget2", "aria2c", "websocat", "grpcurl"],
        &[("--header", Header), ("-H", Header)],
    ),
    rules(&["http", "https", "xh", "xhs"], &[("-a", Either), ("--auth", Either), ("-A", Text)]),
    rules(
        &["ab", "siege", "hey", "wrk", "oha", "k6", "vegeta", "bombardier"],
        &[("-A", Pair(b':')), ("-a", Pair(b':')), ("-H", Header), ("-P", Pair(b':')), ("-C", Text)],
    ),
    rules(
        &["redis-cli", "redis-benchmark", "valkey-cli", "keydb-cli", "redis-sentinel", "iredis"],
        &[("-a", Either)],
    ),
    rules(
        &[
            "mongo",
            "mongosh",
            "mongodump",
            "mongorestore",
            "mongoexport",
            "mongoimport",
            "mongostat",
            "mongotop",
            "mongofiles",
            "arangosh",
        ],
        &[("-p", Either)],
    ),
    rules(
        &[
            "smbclient",
            "rpcclient",
            "smbmap",
            "net",
            "smbget",
            "winexe",
            "smbcacls",
            "smbtree",
            "wmic",
        ],
        &[("-U", Pair(b'%')), ("--user", Pair(b'%'))],
    ),
    rules(&["zip", "zipcloak", "unzip", "zipnote"], &[("-P", Either)]),
    rules(&["7z", "7za", "7zr", "7zz"], &[("-p", Glued)]),
    rules(&["rar", "unrar"], &[("-hp", Glued), ("-p", Glued)]),
    rules(&["sqlcmd", "bcp", "tsql", "osql", "isql", "mssql-cli"], &[("-P", Either)]),
    rules(&["ipmitool", "ipmi-power", "ipmipower"], &[("-P", Either), ("-k", Next), ("-y", Next)]),
    rules(
        &[
            "ipmi-sensors",
            "ipmi-sel",
            "ipmi-fru",
            "ipmi-config",
            "ipmi-chassis",
            "racadm",
            "hponcfg",
            "fence_ipmilan",
            "fence_apc",
            "fence_ilo",
            "fence_vmware",
            "fence_drac5",
        ],
        &[("-p", Either)],
    ),
    rules(SNMP, &[("-A", Either), ("-X", Either), ("-c", Either), ("-3m", Next), ("-3M", Next)]),
    rules(
        &["xfreerdp", "xfreerdp3", "wlfreerdp", "sdl-freerdp"],
        &[("/p:", Glued), ("/gp:", Glued), ("/pass:", Glued), ("-p", Either)],
    ),
    rules(&["useradd", "usermod", "groupadd", "groupmod"], &[("-p", Either)]),
    rules(
        &["openssl"],
        &[
            ("-k", Next),
            ("-K", Next),
            ("-hmac", Next),
            ("-passin", Next),
            ("-passout", Next),
            ("-pass", Next),
            ("-password", Next),
            ("-macopt", Next),
            ("-passcerts", Next),
            ("-psk", Next),
            ("-srppass", Next),
            ("-challenge", Next),
            ("-secret", Next),
        ],
    ),
    rules(
        &["lftp", "ncftp", "ncftpput", "ncftpget", "ncftpls"],
        &[("-u", Pair(b',')), ("-p", Either)],
    ),
    rules(&["open"], &[("-u", Pair(b','))]),
    rules(&["pg_dump", "pg_dumpall", "pg_basebackup", "pgbench", "psql"], &[("-d", Text)]),
    rules(
        &[
            "clickhouse-client",
            "clickhouse",
            "cqlsh",
            "cqlsh.py",
            "influx",
            "cypher-shell",
            "couchbase-cli",
            "cbbackupmgr",
            "beeline",
            "rabbitmqadmin",
            "yt-dlp",
            "youtube-dl",
            "twine",
            "poetry",
            "conan",
            "steghide",
            "xmrig",
            "usql",
            "az",
            "mongocli",
            "glab",
            "dolt",
        ],
        &[("-p", Either)],
    ),
    rules(&["yt-dlp", "youtube-dl"], &[("--video-password", Next), ("--ap-password", Next)]),
    rules(&["nodetool", "plink", "pscp", "psftp", "putty", "addprinc", "cpw"], &[("-pw", Next)]),
    rules(&["vsql", "vertica"], &[("-w", Either)]),
    rules(&["kadmin", "kadmin.local", "squidclient", "ipa-client-install"], &[("-w", Either)]),
    rules(
        &["smbpasswd", "certutil", "pk12util", "modutil"],
        &[("-w", Next), ("-W", Next), ("-K", Next)],
    ),
    rules(&["mosquitto_pub", "mosquitto_sub", "mosquitto_rr", "mqttx"], &[("-P", Either)]),
    rules(&["kinit"], &[("-p", Next)]),
    rules(&["swaks"], &[("-ap", Next), ("-a", Text)]),
    rules(&["sendemail", "sendEmail"], &[("-xp", Next)]),
    rules(
        &["vncviewer", "x11vnc", "vncpasswd", "Xvnc"],
        &[("-passwd", Next), ("-viewpasswd", Next)],
    ),
    rules(&["pdftotext", "pdftoppm", "pdfinfo", "pdfimages"], &[("-upw", Next), ("-opw", Next)]),
    rules(&["signtool", "signtool.exe"], &[("/p", Next), ("-p", Next)]),
    rules(&["osslsigncode"], &[("-pass", Next)]),
    rules(
        &["ykman", "yubico-piv-tool"],
        &[("-P", Either), ("-p", Next), ("-n", Next), ("-N", Next)],
    ),
    rules(
        &[
            "tpm2_unseal",
            "tpm2_create",
            "tpm2_load",
            "tpm2_sign",
            "tpm2_nvread",
            "tpm2_evictcontrol",
        ],
        &[("-p", Next), ("-P", Next), ("-a", Next)],
    ),
    rules(&["ssh-keygen"], &[("-N", Either), ("-P", Either)]),
    rules(&["ccrypt", "ccencrypt", "ccdecrypt", "mcrypt"], &[("-K", Either), ("-k", Either)]),
    rules(
        &["hdparm"],
        &[
            ("--security-set-pass", Next),
            ("--security-unlock", Next),
            ("--security-erase", Next),
            ("--security-disable", Next),
        ],
    ),
    rules(&["knife"], &[("-P", Next)]),
    rules(&["gem"], &[("-k", Next)]),
    rules(&["dotnet", "nuget"], &[("-k", Next), ("-ApiKey", Next)]),
    rules(&["codecov", "frpc", "frps", "fly", "flyctl", "doctl"], &[("-t", Next)]),
    rules(&["gitlab-runner"], &[("-r", Next), ("-t", Next)]),
    rules(&["gh"], &[("-b", Next), ("--body", Next)]),
    rules(
        &["ss-server", "ss-local", "ss-redir", "sslocal", "ssserver", "ss-tunnel"],
        &[("-k", Either)],
    ),
    rules(&["turnserver", "coturn", "turnadmin"], &[("-u", Pair(b':')), ("-p", Next)]),
    rules(&["jenkins-cli.jar", "splunk"], &[("-auth", Pair(b':'))]),
    rules(&["agent.jar", "slave.jar", "remoting.jar"], &[("-secret", Next)]),
    rules(&["nats-server", "gnatsd"], &[("--auth", Next), ("--pass", Next)]),
    rules(&["consul", "serf", "nomad"], &[("-encrypt", Next)]),
    rules(&["aws"], &[("--value", Next), ("--auth-parameters", Text), ("--secret-string", Next)]),
    rules(&["aws"], &[("--secret-id", Plain)]),
    rules(&["pulumi"], &[("--secret", Plain)]),
    rules(&["gh"], &[("--with-token", Plain)]),
    rules(&["oathtool"], &[("-b", Text)]),
    rules(&["zerotier-cli"], &[("-T", Glued)]),
    rules(&["fetchmail", "msmtp"], &[("--passwordeval", Next)]),
];

/// What a word is that is no option.
#[derive(Clone, Copy, Debug)]
enum What {
    /// A secret.
    Secret,
    /// A user and a secret, parted by this.
    Parted(u8),
}

/// A secret among the words of a program.
struct Position {
    programs: &'static [&'static str],
    /// The words that it begins with; case does not count.
    words: &'static [&'static str],
    /// A single letter among its options.
    letter: Option<u8>,
    /// Words between them and the secret.
    skip: usize,
    what: What,
    /// Only the word that stands there; else all from there on.
    only: bool,
}

const fn position(
    programs: &'static [&'static str],
    words: &'static [&'static str],
    skip: usize,
) -> Position {
    Position { programs, words, letter: None, skip, what: What::Secret, only: false }
}

const ORACLE: &[&str] =
    &["sqlplus", "sqlldr", "imp", "exp", "impdp", "expdp", "rman", "sqlcl", "sql", "tkprof"];

const fn with_letter(programs: &'static [&'static str], letter: u8, skip: usize) -> Position {
    Position { letter: Some(letter), ..position(programs, &[], skip) }
}

const fn parted(
    programs: &'static [&'static str],
    words: &'static [&'static str],
    by: u8,
) -> Position {
    Position { what: What::Parted(by), only: true, ..position(programs, words, 0) }
}

const POSITIONS: &[Position] = &[
    with_letter(&["htpasswd"], b'n', 1),
    with_letter(&["htpasswd"], b'b', 2),
    with_letter(&["mosquitto_passwd"], b'b', 2),
    position(&["samba-tool"], &["user", "create"], 1),
    position(&["samba-tool"], &["user", "add"], 1),
    position(&["rabbitmqctl"], &["add_user"], 1),
    position(&["rabbitmqctl"], &["change_password"], 1),
    position(&["rabbitmqctl"], &["authenticate_user"], 1),
    position(&["mc", "mcli"], &["alias", "set"], 2),
    position(&["mc", "mcli"], &["config", "host", "add"], 2),
    position(&["vault", "bao"], &["login"], 0),
    position(&["vault", "bao"], &["unwrap"], 0),
    position(&["vault", "bao"], &["operator", "unseal"], 0),
    position(&["vault", "bao"], &["kv", "put"], 1),
    position(&["vault", "bao"], &["kv", "patch"], 1),
    position(&["vault", "bao"], &["write"], 1),
    position(&["wpa_passphrase"], &[], 1),
    position(&["cargo"], &["login"], 0),
    position(&["ngrok"], &["authtoken"], 0),
    position(&["ngrok"], &["config", "add-authtoken"], 0),
    position(&["wandb"], &["login"], 0),
    position(&["snyk"], &["auth"], 0),
    position(&["bitcoin-cli", "litecoin-cli"], &["walletpassphrase"], 0),
    position(&["bitcoin-cli", "litecoin-cli"], &["encryptwallet"], 0),
    position(&["redis-cli", "valkey-cli"], &["auth"], 0),
    position(&["redis-cli", "valkey-cli"], &["config", "set", "requirepass"], 0),
    position(&["redis-cli", "valkey-cli"], &["config", "set", "masterauth"], 0),
    position(&["redis-cli", "valkey-cli"], &["acl", "setuser"], 1),
    position(&["openssl"], &["passwd"], 0),
    position(&["mkpasswd"], &[], 0),
    position(&["oathtool"], &[], 0),
    position(&["rclone"], &["obscure"], 0),
    position(&["rclone"], &["config", "create"], 3),
    position(&["grafana-cli"], &["admin", "reset-admin-password"], 0),
    position(&["kubeadm"], &["token", "create"], 0),
    position(&["ansible-vault"], &["encrypt_string"], 0),
    Position { words: &["join"], only: true, ..position(&["kumo"], &[], 0) },
    position(&["poetry"], &["config"], 1),
    position(&["cloudflared"], &["service", "install"], 0),
    position(&["qpdf"], &["--encrypt"], 0),
    position(&["db2"], &["connect", "to"], 4),
    position(&["isql"], &[], 2),
    position(&["smbclient"], &[], 1),
    position(&["pulumi"], &["config", "set"], 1),
    position(&["iwconfig"], &[], 2),
    parted(ORACLE, &[], b'/'),
    parted(&["rman"], &["target"], b'/'),
    parted(&["etcdctl"], &["user", "add"], b':'),
    parted(&["mysqlsh"], &[], b':'),
];

/// Programs that take the secret behind a word that names it, wherever that stands: `nmcli … password
/// SECRET`, `etcdctl put /db/password SECRET`.
const NAMED_BY_WORD: &[&str] = &[
    "nmcli",
    "etcdctl",
    "consul",
    "aws",
    "npm",
    "yarn",
    "pnpm",
    "poetry",
    "rclone",
    "pulumi",
    "heroku",
    "redis-cli",
    "git",
    "gcloud",
];

/// Programs whose single letters may be written together, and those of them that take nothing.
const TOGETHER: &[(&str, &[u8])] = &[
    ("curl", b"#0123456afgGiIjJkKlLMnNOpqRsSvVZ"),
    ("zip", b"rqejmuyvT9FoD"),
    ("unzip", b"oqnjv"),
    ("ldapsearch", b"xZLnvMc"),
    ("docker", b"idt"),
    ("podman", b"idt"),
    ("mysql", b"BNsv"),
];

fn base(argument: &[u8]) -> &[u8] {
    argument.rsplit(|byte| matches!(byte, b'/' | b'\\' | b'=')).next().unwrap_or(argument)
}

/// A program that there are rules for.
fn known(name: &[u8]) -> Option<&'static str> {
    let all = RULES.iter().flat_map(|rules| rules.programs);
    let all = all.chain(POSITIONS.iter().flat_map(|position| position.programs));
    all.chain(NAMED_BY_WORD).find(|known| known.as_bytes() == name).copied()
}

/// Programs that run others, and whose own options of these letters are none of theirs.
fn ends_program(name: &[u8]) -> bool {
    const RUNS: &[&[u8]] = &[
        b"ssh",
        b"scp",
        b"sftp",
        b"rsync",
        b"tar",
        b"cp",
        b"mkdir",
        b"grep",
        b"egrep",
        b"rg",
        b"find",
        b"sed",
        b"awk",
        b"ls",
        b"cat",
        b"echo",
        b"systemctl",
        b"service",
        b"apt",
        b"apt-get",
        b"dnf",
        b"yum",
        b"man",
        b"which",
        b"pgrep",
        b"pkill",
        b"vim",
        b"nano",
        b"less",
        b"tail",
    ];
    RUNS.contains(&name)
}

/// What `argument` takes. A program is known by the last part of its path, also behind `sudo`, `env`,
/// `timeout 5`, `docker exec db`, `ssh host`.
pub(super) fn takes<'a>(program: &mut Program<'a>, argument: &'a [u8]) -> Takes {
    let is_option = argument.starts_with(b"-") && argument.len() > 1
        || [&b"/p:"[..], b"/gp:", b"/pass:"].iter().any(|begin| argument.starts_with(begin))
        || argument == b"/p";
    if !is_option {
        return word(program, argument);
    }
    let rules = RULES.iter().filter(|rules| rules.is_of(program));
    let taken = rules
        .flat_map(|rules| rules.options)
        .find_map(|(option, how)| taken_by(option, *how, argument))
        .or_else(|| together(program, argument));
    if argument == b"--encrypt" {
        program.words.push(argument);
    }
    if argument.len() < 8 && !argument.starts_with(b"--") {
        program.letters.extend(&argument[1..]);
    }
    taken.unwrap_or(Takes::Nothing)
}

impl Rules {
    fn is_of(&self, program: &Program<'_>) -> bool {
        program.name.is_some_and(|name| self.programs.contains(&name))
            && self.after.is_none_or(|after| program.words.contains(&after.as_bytes()))
    }
}

/// An argument that is no option: a program, a word of it, or a secret by where it stands.
fn word<'a>(program: &mut Program<'a>, argument: &'a [u8]) -> Takes {
    if let Some(what) = positioned(program) {
        program.words.truncate(WORDS_MAX);
        program.words.push(argument);
        // `username=a`, `-` and the like are looked into as any.
        if argument.contains(&b'=') && matches!(what, What::Secret) {
            let at = argument.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
            let is_put = program.words.iter().any(|word| *word == b"put" || *word == b"patch");
            return if is_put { Takes::Here(at) } else { Takes::Nothing };
        }
        return match what {
            What::Secret => Takes::Here(0),
            What::Parted(by) => Takes::PairHere(0, by),
        };
    }
    let name = base(argument);
    if program.words.len() <= 1 && ends_program(name) {
        *program = Program::default();
        return Takes::Nothing;
    }
    if let Some(name) = known(name)
        && program.name.is_none_or(|runs| runs_others(runs) && !is_word(name))
    {
        *program = Program { name: Some(name), ..Program::default() };
        return Takes::Nothing;
    }
    let names_secret = program.name.is_some_and(|name| NAMED_BY_WORD.contains(&name))
        && super::names::is_secret_word(argument);
    if program.name.is_some() && program.words.len() < WORDS_MAX {
        program.words.push(argument);
    }
    if names_secret { Takes::NextValue } else { Takes::Nothing }
}

/// Whether a program runs others that are named behind it.
fn runs_others(name: &str) -> bool {
    matches!(
        name,
        "docker" | "podman" | "nerdctl" | "kubectl" | "oc" | "sshpass" | "aws" | "heroku"
    )
}

/// Whether a program's name is a word as well.
fn is_word(name: &str) -> bool {
    matches!(
        name,
        "net"
            | "open"
            | "sql"
            | "exp"
            | "imp"
            | "http"
            | "https"
            | "fly"
            | "gem"
            | "git"
            | "influx"
    )
}

/// Whether the next word of a program is a secret by where it stands.
fn positioned(program: &Program<'_>) -> Option<What> {
    let name = program.name?;
    let fits = |position: &&Position| {
        position.programs.contains(&name)
            && position.letter.is_none_or(|letter| program.letters.contains(&letter))
            && program.words.len() >= position.words.len() + position.skip
            && position
                .words
                .iter()
                .zip(&program.words)
                .all(|(word, seen)| seen.eq_ignore_ascii_case(word.as_bytes()))
            && (!position.only || program.words.len() == position.words.len() + position.skip)
    };
    POSITIONS.iter().find(fits).map(|position| position.what)
}

/// What `argument` takes if it is `option`.
fn taken_by(option: &str, how: How, argument: &[u8]) -> Option<Takes> {
    // `-password` is a name, and no `-p`.
    if matches!(&argument[1..], b"password" | b"passwd" | b"passphrase" | b"pass" | b"passfile")
        && option.as_bytes() != argument
    {
        return None;
    }
    let rest = argument.strip_prefix(option.as_bytes())?;
    let mut at = argument.len() - rest.len();
    let here = !rest.is_empty();
    let is_long = option.len() > 2 && option.starts_with('-') && how != Glued;
    if here && is_long {
        // `-passinX` is another option.
        if !rest.starts_with(b"=") {
            return None;
        }
        at += 1;
    }
    match how {
        Either | Glued if here => Some(Takes::Here(at)),
        Next if here && is_long => Some(Takes::Here(at)),
        Either | Next if !here => Some(Takes::Next),
        Pair(by) if here => Some(Takes::PairHere(at, by)),
        Pair(by) => Some(Takes::NextPair(by)),
        Header if here => Some(Takes::HeaderHere(at)),
        Header => Some(Takes::NextHeader),
        Text | Plain if !here => Some(Takes::NextText),
        Either | Glued | Next | Text | Plain => None,
    }
}

/// What single letters take that are written together: `curl -sSu USER:SECRET`, `zip -rPSECRET`.
fn together(program: &Program<'_>, argument: &[u8]) -> Option<Takes> {
    let name = program.name?;
    let (_, plain) = TOGETHER.iter().find(|(known, _)| *known == name)?;
    let plain_len = argument.get(1..)?.iter().take_while(|byte| plain.contains(byte)).count();
    if plain_len == 0 || argument.starts_with(b"--") {
        return None;
    }
    let letter = *argument.get(1 + plain_len)?;
    let option = [b'-', letter];
    let rest = argument.len() - plain_len - 2;
    let of_letter = RULES
        .iter()
        .filter(|rules| rules.is_of(program))
        .flat_map(|rules| rules.options)
        .find(|(known, _)| known.as_bytes() == option)?;
    let at = argument.len() - rest;
    match (of_letter.1, rest > 0) {
        (Either | Glued, true) => Some(Takes::Here(at)),
        (Either | Next, false) => Some(Takes::Next),
        (Pair(by), true) => Some(Takes::PairHere(at, by)),
        (Pair(by), false) => Some(Takes::NextPair(by)),
        (Header, true) => Some(Takes::HeaderHere(at)),
        (Header, false) => Some(Takes::NextHeader),
        (Text, false) => Some(Takes::NextText),
        (Glued, false) | (Next | Text, true) | (Plain, _) => None,
    }
}
