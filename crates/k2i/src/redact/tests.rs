//! Secrets that must go and lines that must stay. In the corpora `|` parts arguments, and `§` stands
//! for nothing: it keeps made-up keys from looking real to those who scan repositories for keys.

use super::*;

fn arguments(line: &str) -> Vec<u8> {
    let mut argv = line.replace('§', "").replace('|', "\0").replace('¦', "|").into_bytes();
    argv.push(0);
    argv
}

fn shown(argv: &[u8]) -> String {
    String::from_utf8_lossy(argv).trim_end_matches('\0').replace('\0', "|")
}

/// A line, and what must not be left of it.
const SECRETS: &[(&str, &str)] = &[
    // By the name of an option.
    ("app|--password=hunter2", "hunter2"),
    ("app|--password|hunter2", "hunter2"),
    ("app|-password|hunter2", "hunter2"),
    ("app|--passwd=hunter2", "hunter2"),
    ("app|--pass|hunter2|--verbose", "hunter2"),
    ("app|--db-password=hunter2", "hunter2"),
    ("app|--db_password=hunter2", "hunter2"),
    ("app|--dbPassword=hunter2", "hunter2"),
    ("app|--database.password=hunter2", "hunter2"),
    ("app|--secret=s3cr3t", "s3cr3t"),
    ("app|--client-secret|s3cr3t", "s3cr3t"),
    ("app|--token=t0ps3cret", "t0ps3cret"),
    ("app|--token|t0ps3cret", "t0ps3cret"),
    ("app|--auth-token=t0ps3cret", "t0ps3cret"),
    ("app|--access-token|t0ps3cret", "t0ps3cret"),
    ("app|--api-key=k3y", "k3y"),
    ("app|--api_key|k3y", "k3y"),
    ("app|--apikey=k3y", "k3y"),
    ("app|--apiKey=k3y", "k3y"),
    ("app|--secret-key=k3y", "k3y"),
    ("app|--encryption-key=k3y", "k3y"),
    ("app|--signing-key|k3y", "k3y"),
    ("app|--master-key=k3y", "k3y"),
    ("app|--credentials=user-and-word", "user-and-word"),
    ("app|--passphrase=correct horse", "correct horse"),
    ("app|--jwt=abc.def", "abc.def"),
    ("app|--psk=w1f1w1f1", "w1f1w1f1"),
    ("app|--cookie=sid=1234", "1234"),
    ("app|--connection-string=Server=db;Password=hunter2", "hunter2"),
    ("app|--password=with=equals", "with=equals"),
    ("app|--password='quo ted'", "quo ted"),
    ("app|--PASSWORD=hunter2", "hunter2"),
    ("app|--password2=hunter2", "hunter2"),
    ("app|--admin.password|hunter2", "hunter2"),
    ("keytool|-list|-storepass|changeit", "changeit"),
    ("keytool|-genkey|-keypass|changeit", "changeit"),
    ("java|-Dspring.datasource.password=hunter2|-jar|a.jar", "hunter2"),
    ("java|-Djavax.net.ssl.keyStorePassword=changeit|Main", "changeit"),
    ("java|-Djavax.net.ssl.trustStorePassword=changeit|Main", "changeit"),
    ("java|-Daws.secretKey=k3yk3y|Main", "k3yk3y"),
    ("java|-Dapi.token=t0k3n|Main", "t0k3n"),
    ("vault|server|-dev-root-token-id=x|-dev|--unseal-key=u1", "u1"),
    ("gpg|--batch|--passphrase|hunter2|-d|f.gpg", "hunter2"),
    ("k3s|agent|--token|K10abc", "K10abc"),
    ("kubeadm|join|10.0.0.1:6443|--token|abcdef.0123456789abcdef", "abcdef.0123456789abcdef"),
    ("docker|swarm|join|--token|SWMTKN-1-abc|10.0.0.1:2377", "SWMTKN-1-abc"),
    ("consul|agent|-encrypt-key=aGVsbG8=", "aGVsbG8="),
    ("telegraf|--influxdb-password|hunter2", "hunter2"),
    ("wg-quick|--private-key=wgkey", "wgkey"),
    ("rclone|--s3-secret-access-key=abc123", "abc123"),
    ("restic|--password=hunter2|backup|/home", "hunter2"),
    ("etcdctl|--user=root:hunter2|get|/", "hunter2"),
    ("etcdctl|--user|root:hunter2|get|/", "hunter2"),
    ("nomad|-token=b0b", "b0b"),
    // By the name of a variable.
    ("env|DB_PASSWORD=hunter2|app", "hunter2"),
    ("env|PGPASSWORD=hunter2|psql", "hunter2"),
    ("env|MYSQL_PWD=hunter2|mysql", "hunter2"),
    ("env|REDISCLI_AUTH_PASSWORD=hunter2|redis-cli", "hunter2"),
    ("env|GITHUB_TOKEN=t0k3n|gh|pr|list", "t0k3n"),
    ("env|AWS_SECRET_ACCESS_KEY=abc/def|aws|s3|ls", "abc/def"),
    ("env|SECRET=x1|app", "x1"),
    ("env|API_KEY=k3y|app", "k3y"),
    ("env|NPM_TOKEN=t0k3n|npm|publish", "t0k3n"),
    ("env|SLACK_WEBHOOK_URL=https://hooks/x1y2|app", "x1y2"),
    ("sh|-c|PASSWORD=hunter2 ./run", "hunter2"),
    ("sh|-c|export TOKEN=t0k3n; ./run", "t0k3n"),
    ("sh|-c|export TOKEN=\"t0 k3n\"; ./run", "t0 k3n"),
    ("sh|-c|mysql --password=hunter2 -e 'select 1'", "hunter2"),
    ("bash|-c|./a --token=t0k3n && ./b", "t0k3n"),
    ("docker|run|-e|POSTGRES_PASSWORD=hunter2|postgres", "hunter2"),
    ("docker|run|--env|MYSQL_ROOT_PASSWORD=hunter2|mysql", "hunter2"),
    ("docker|run|--env=TOKEN=t0k3n|img", "t0k3n"),
    ("docker|build|--build-arg|NPM_TOKEN=t0k3n|.", "t0k3n"),
    ("docker|login|-u|bob|-p|hunter2|registry", "hunter2"),
    ("docker|login|--username|bob|--password|hunter2", "hunter2"),
    ("podman|login|-u|bob|-p|hunter2|quay", "hunter2"),
    ("helm|install|x|--set|db.password=hunter2,db.host=h", "hunter2"),
    ("helm|upgrade|x|--set=auth.rootPassword=hunter2", "hunter2"),
    ("kubectl|create|secret|generic|x|--from-literal=password=hunter2", "hunter2"),
    ("kubectl|create|secret|docker-registry|x|--docker-password=hunter2", "hunter2"),
    ("ansible-playbook|site.yml|-e|db_password=hunter2", "hunter2"),
    ("ansible-playbook|site.yml|--extra-vars|ansible_become_pass=hunter2", "hunter2"),
    ("terraform|apply|-var|db_password=hunter2", "hunter2"),
    ("terraform|apply|-var=api_token=t0k3n", "t0k3n"),
    ("make|deploy|TOKEN=t0k3n", "t0k3n"),
    ("mount|-t|cifs|//s/x|/mnt|-o|username=bob,password=hunter2", "hunter2"),
    ("psql|host=db user=bob password=hunter2 dbname=x", "hunter2"),
    ("psql|-d|host=db password=hunter2", "hunter2"),
    ("nmcli|dev|wifi|connect|home|password|hunter22", "hunter22"),
    ("nmcli|con|modify|home|wifi-sec.psk|hunter22", "hunter22"),
    ("aws|configure|set|aws_secret_access_key|abcd", "abcd"),
    ("redis-server|--requirepass|hunter2", "hunter2"),
    ("sqlservr|Server=tcp:db,1433;User ID=sa;Password=hunter2;", "hunter2"),
    ("app|Endpoint=sb://x/;SharedAccessKeyName=r;SharedAccessKey=abcd=", "abcd="),
    ("app|DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abcd==", "abcd=="),
    // By the program.
    ("mysql|-uroot|-phunter2|db", "hunter2"),
    ("mysql|-u|root|-phunter2", "hunter2"),
    ("/usr/bin/mysqldump|-phunter2|--all-databases", "hunter2"),
    ("mysqladmin|-uroot|-phunter2|ping", "hunter2"),
    ("mariadb|-phunter2", "hunter2"),
    ("sudo|mysql|-phunter2", "hunter2"),
    ("timeout|5|mysql|-phunter2", "hunter2"),
    ("sshpass|-p|hunter2|ssh|host", "hunter2"),
    ("sshpass|-phunter2|ssh|host", "hunter2"),
    ("ldapsearch|-D|cn=admin|-w|hunter2|-b|dc=x", "hunter2"),
    ("ldapmodify|-whunter2", "hunter2"),
    ("curl|-u|bob:hunter2|https://h/", "hunter2"),
    ("curl|-ubob:hunter2|https://h/", "hunter2"),
    ("curl|--user|bob:hunter2|https://h/", "hunter2"),
    ("curl|--user=bob:hunter2|https://h/", "hunter2"),
    ("curl|--proxy-user|bob:hunter2|https://h/", "hunter2"),
    ("curl|-H|Authorization: Bearer t0k3n|https://h/", "t0k3n"),
    ("curl|-H|authorization: Basic Ym9iOmh1bnRlcjI=|https://h/", "Ym9iOmh1bnRlcjI="),
    ("curl|-H|X-Api-Key: k3y|https://h/", "k3y"),
    ("curl|--header|X-Vault-Token: hv|https://h/", ": hv"),
    ("curl|--header=PRIVATE-TOKEN: gl|https://h/", ": gl"),
    ("curl|-HAuthorization: token t0k3n|https://h/", "t0k3n"),
    ("curl|-b|session=abcd|https://h/", "abcd"),
    ("curl|-d|user=bob&password=hunter2|https://h/login", "hunter2"),
    ("curl|--data|{\"user\":\"bob\",\"password\":\"hunter2\"}|https://h/", "hunter2"),
    ("curl|-d|{\"api_key\": \"k3y\"}|https://h/", "k3y"),
    ("curl|https://h/?token=t0k3n&x=1", "t0k3n"),
    ("curl|https://h/?x=1&api_key=k3y", "k3y"),
    ("curl|https://bob:hunter2@h/", "hunter2"),
    ("wget|--password=hunter2|https://h/", "hunter2"),
    ("wget|--http-password|hunter2|https://h/", "hunter2"),
    ("wget|--header|Authorization: Bearer t0k3n|https://h/", "t0k3n"),
    ("http|-a|bob:hunter2|h/", "hunter2"),
    ("http|--auth|bob:hunter2|h/", "hunter2"),
    ("redis-cli|-a|hunter2|ping", "hunter2"),
    ("redis-cli|-h|h|--pass|hunter2", "hunter2"),
    ("mongosh|-u|bob|-p|hunter2", "hunter2"),
    ("mongodump|--password|hunter2", "hunter2"),
    ("smbclient|//s/x|-U|bob%hunter2", "hunter2"),
    ("zip|-P|hunter2|a.zip|a", "hunter2"),
    ("unzip|-Phunter2|a.zip", "hunter2"),
    ("7z|x|-phunter2|a.7z", "hunter2"),
    ("sqlcmd|-S|h|-U|sa|-P|hunter2", "hunter2"),
    ("ipmitool|-H|h|-U|root|-P|hunter2|power|on", "hunter2"),
    ("snmpwalk|-v2c|-c|c0mmunity|h", "c0mmunity"),
    ("snmpget|-v3|-A|authw0rd|-X|privw0rd|h", "privw0rd"),
    ("xfreerdp|/u:bob|/p:hunter2|/v:h", "hunter2"),
    ("openssl|enc|-d|-k|hunter2|-in|f", "hunter2"),
    ("openssl|rsa|-passin|pass:hunter2", "hunter2"),
    ("useradd|-p|$6$salt$hash|bob", "$6$salt$hash"),
    ("lftp|-u|bob,hunter2|h", "hunter2"),
    ("mosquitto_pub|-u|bob|-P|hunter2|-t|x", "hunter2"),
    // In URLs.
    ("app|postgres://bob:hunter2@db/x", "hunter2"),
    ("app|--dsn=postgresql://bob:hunter2@db:5432/x?sslmode=off", "hunter2"),
    ("app|mysql://root:hunter2@db/x", "hunter2"),
    ("app|redis://:hunter2@r:6379/0", "hunter2"),
    ("app|amqp://bob:hunter2@mq/", "hunter2"),
    ("app|mongodb+srv://bob:hunter2@m/x", "hunter2"),
    ("app|bob:hunter2@tcp(db:3306)/x", "hunter2"),
    ("app|DATABASE_URL=postgres://bob:hunter2@db/x", "hunter2"),
    ("app|--broker=nats://bob:hunter2@n:4222", "hunter2"),
    ("git|clone|https://oauth2:t0k3n@git.example/x.git", "t0k3n"),
    (
        "git|clone|https://gh§p_16C7e42F292c6912E7710c838347Ae178B4a@github.com/x",
        "16C7e42F292c6912E7710c838347Ae178B4a",
    ),
    ("app|ftp://bob:p@ss@h/x", "p@ss"),
    ("app|smtp://bob%40h:hunter2@mail:587", "hunter2"),
    ("pip|install|--index-url|https://bob:hunter2@pkgs/simple", "hunter2"),
    // By shape.
    ("app|AKI§AIOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"),
    ("app|x|wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1", "wJalrXUtnFEMI"),
    ("app|gh§p_16C7e42F292c6912E7710c838347Ae178B4a", "16C7e42F292c6912E7710c838347Ae178B4a"),
    ("app|github§_pat_11AAAAAAA0abcdefghij_klmnopqrstuvwxyz0123456789", "klmnopqrstuvwxyz"),
    ("app|gl§pat-ABCdef1234567890abcd", "ABCdef1234567890abcd"),
    ("app|xox§b-123456789012-123456789012-AbCdEfGhIjKlMnOp", "AbCdEfGhIjKlMnOp"),
    ("app|sk§_live_4eC39HqLyjWDarjtT1zdp7dc", "4eC39HqLyjWDarjtT1zdp7dc"),
    ("app|rk§_live_4eC39HqLyjWDarjtT1zdp7dc", "4eC39HqLyjWDarjtT1zdp7dc"),
    ("app|AI§zaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", "SyD-9tSrke72PouQMnMX"),
    ("app|ya§29.a0AfH6SMBx1234567890abcdefghij", "a0AfH6SMBx"),
    ("app|sk-§ant-api03-AbCdEf123456-GhIjKl7890", "AbCdEf123456"),
    ("app|sk-§proj-AbCdEf123456GhIjKl7890", "AbCdEf123456"),
    ("app|h§f_AbCdEfGhIjKlMnOpQrStUvWx12345678", "AbCdEfGhIjKlMnOp"),
    ("app|np§m_AbCdEf123456GhIjKl7890MnOpQr1234", "AbCdEf123456"),
    ("app|py§pi-AgEIcHlwaS5vcmcCJDEyMzQ1Njc4", "AgEIcHlwaS5vcmc"),
    ("app|S§G.AbCdEf123456GhIjKl7890.MnOpQr1234StUvWx5678", "AbCdEf123456"),
    ("app|do§p_v1_0123456789abcdef0123456789abcdef", "0123456789abcdef"),
    ("app|hv§s.CAESIAbCdEf123456GhIjKl7890", "CAESIAbCdEf123456"),
    ("app|dckr§_pat_AbCdEf123456GhIjKl7890", "AbCdEf123456"),
    ("app|gl§sa_AbCdEf123456GhIjKl7890MnOp_12345678", "AbCdEf123456"),
    ("app|shp§at_0123456789abcdef0123456789abcdef", "0123456789abcdef"),
    (
        "app|AGE-§SECRET-KEY-1QYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQY2345",
        "QYQSZQGPQYQSZQGP",
    ),
    ("app|tskey-§auth-kAbCdEf12CNTRL-AbCdEf123456", "kAbCdEf12CNTRL"),
    ("app|12345678:§AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsawX", "AAHdqTcvCH1vGWJ"),
    ("app|eyJ§hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N", "eyJzdWIiOiIxMjM0In0"),
    ("app|jwt|is|eyJ§hbGciOiJub25lIn0.eyJzdWIiOiIxMjM0NTY3ODkwIn0.", "eyJzdWIiOiIxMjM0NTY3ODkwIn0"),
    (
        "app|-----BEGIN §RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
        "MIIEpAIBAAKCAQEA",
    ),
    ("app|--key=-----BEGIN §OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk", "b3BlbnNzaC1rZXk"),
    ("app|Zx8Kq2Lw9Pv4Rt6Ys1Bn3Mc5Hd7", "Zx8Kq2Lw9Pv4Rt6Ys1Bn3Mc5Hd7"),
    ("app|--id|Zx8Kq2Lw9Pv4Rt6Ys1Bn3Mc5Hd7", "Zx8Kq2Lw9Pv4Rt6Ys1Bn3Mc5Hd7"),
    // Titles without NUL.
    ("worker: --password=hunter2 --x", "hunter2"),
    ("mysql -uroot -phunter2 db", "hunter2"),
    ("celery worker -b redis://:hunter2@r/0", "hunter2"),
];

/// Lines that stay as they are.
const HARMLESS: &[&str] = &[
    "/sbin/init|splash",
    "/usr/lib/systemd/systemd-journald",
    "sshd: bob@pts/0",
    "sshd: bob [priv]",
    "/usr/sbin/sshd|-D|-o|PasswordAuthentication=no",
    "/usr/sbin/sshd|-D|-p|2222",
    "nginx: master process /usr/sbin/nginx -g daemon off;",
    "postgres: walwriter",
    "postgres: bob shop 10.0.0.1(5432) idle",
    "/usr/lib/postgresql/15/bin/postgres|-D|/var/lib/postgresql/15/main|-c|config_file=/etc/postgresql/15/main/postgresql.conf",
    "java|-Xms256m|-Xmx2g|-XX:+UseG1GC|-jar|app.jar|--spring.config.location=/etc/app.yml",
    "java|-Djava.security.egd=file:/dev/urandom|-cp|/opt/kafka/libs/*|kafka.Kafka|/etc/kafka/server.properties",
    "java|-Djavax.net.ssl.keyStore=/etc/ssl/keystore.jks|Main",
    "python3|-m|gunicorn|shop.wsgi:app|-w|4|-b|127.0.0.1:8000",
    "python3|train.py|--max-tokens=4096|--tokenizer=bpe",
    "python3|serve.py|--max-new-tokens|128",
    "node|server.js|--port=3000",
    "containerd-shim-runc-v2|-namespace|moby|-id|0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef|-address|/run/containerd/containerd.sock",
    "dockerd|-H|fd://|--containerd=/run/containerd/containerd.sock",
    "docker|run|-p|8080:80|nginx",
    "docker|run|--rm|-it|alpine:3.19|sh",
    "docker|pull|nginx@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "docker|login|--password-stdin|-u|bob",
    "kubelet|--kubeconfig=/etc/kubernetes/kubelet.conf|--config=/var/lib/kubelet/config.yaml",
    "kube-apiserver|--service-account-signing-key-file=/etc/kubernetes/pki/sa.key|--token-auth-file=/etc/tokens.csv",
    "kube-apiserver|--tls-private-key-file=/etc/kubernetes/pki/apiserver.key|--secure-port=6443",
    "kubectl|get|secret|-n|kube-system",
    "kubectl|get|secrets",
    "kubectl|describe|secret|db-credentials",
    "etcd|--name|a|--listen-client-urls|https://127.0.0.1:2379",
    "vault|token|lookup",
    "vault|server|-config=/etc/vault.hcl",
    "pass|show|mail/work",
    "passwd|bob",
    "gnome-keyring-daemon|--start|--components=secrets",
    "ssh-agent|-s",
    "ssh|-i|/home/bob/.ssh/id_ed25519|-p|2222|bob@host",
    "ssh|bob@host",
    "scp|-P|2222|a|host:b",
    "rsync|-a|--password-file=/etc/rsync.secret|a/|host::b",
    "restic|--password-file=/etc/restic.pw|backup|/home",
    "restic|--password-command|pass show restic|backup",
    "git|clone|https://github.com/matsumotory/k2i.git",
    "git|clone|git@github.com:matsumotory/k2i.git",
    "git|checkout|0123456789abcdef0123456789abcdef01234567",
    "git|commit|-m|Add password reset",
    "git|commit|-m|fix: token refresh in auth",
    "git|log|--author=bob",
    "curl|https://example.com/a?b=c&d=e",
    "curl|-fsSL|https://example.com/install.sh",
    "curl|-H|Content-Type: application/json|https://h/",
    "curl|-H|Accept: text/html|https://h/",
    "curl|-o|out.bin|-u|bob|https://h/",
    "wget|-q|https://example.com/file-1.2.3.tar.gz",
    "mysql|-u|root|-p|db",
    "mysql|-uroot|--port=3306|db",
    "mysqld|--datadir=/var/lib/mysql|--socket=/run/mysqld/mysqld.sock",
    "psql|-h|db|-p|5432|-U|bob|shop",
    "psql|--no-password|-c|select 1",
    "redis-server|*:6379",
    "redis-cli|-h|r|-p|6379|ping",
    "mongod|--dbpath|/data|--keyFile|/etc/mongo.key",
    "rabbitmqctl|list_queues",
    "ls|-la|/etc/passwd",
    "cat|/etc/shadow",
    "vim|/etc/pam.d/common-password",
    "grep|-r|password|src",
    "grep|-rn|token|.",
    "find|/|-name|*.key",
    "tar|-xpf|a.tar|-C|/srv",
    "cp|-p|a|b",
    "mkdir|-p|/srv/a/b",
    "make|-j4|CC=gcc",
    "cargo|build|--release|--target-dir|/tmp/target",
    "rustc|--crate-name|tokenizer|--edition=2021|src/lib.rs|-C|metadata=0123456789abcdef",
    "gcc|-O2|-Wp,-D_FORTIFY_SOURCE=2|-c|a.c|-o|a.o",
    "/nix/store/0c7yzq1vz3pkm5xw2v8nzr4k9q6d1s0f-bash-5.2/bin/bash",
    "/usr/bin/qemu-system-x86_64|-uuid|6ba7b810-9dad-11d1-80b4-00c04fd430c8|-m|2048",
    "qemu-system-x86_64|-object|secret,id=masterKey0,format=raw,file=/var/lib/libvirt/master-key.aes",
    "systemd-cryptsetup|attach|luks-6ba7b810|/dev/sda2|none|discard",
    "cryptsetup|open|/dev/sda2|root|--key-file=/root/key",
    "cron|-f",
    "sleep|infinity",
    "bash|-c|echo hello; sleep 5",
    "bash|-c|for f in *; do echo \"$f\"; done",
    "sh|-c|PASSWORD=$DB_PASSWORD ./run",
    "env|TOKEN_FILE=/run/secrets/token|app",
    "env|LANG=C.UTF-8|PATH=/usr/bin:/bin|app",
    "app|--password-file|/run/secrets/db",
    "app|--token-ttl=3600",
    "app|--token-file=/var/run/token",
    "app|--secret-name=db-credentials",
    "app|--no-password|positional",
    "app|--ask-pass",
    "app|--require-token=true",
    "app|--password-policy=strict",
    "app|--auth=basic",
    "app|--auth-method=oidc",
    "app|--api-key-file|/etc/key",
    "app|--session-timeout=30",
    "app|--cookie-domain=example.com",
    "app|--log-level=debug|--bind=0.0.0.0:8080",
    "app|--public-url=https://example.com/path?x=1",
    "app|--image=registry.example.com/team/app:2024.01.02-abcdef0",
    "app|--node-name=ip-10-0-0-1.eu-central-1.compute.internal",
    "app|--class=org.apache.spark.deploy.SparkSubmit2|--name|PageRank",
    "app|2024-01-02T03:04:05.678Z|INFO",
    "app|mailto:bob@example.com",
    "app|https://example.com/@bob/posts",
    "app|user@host:/path",
    "apache2|-k|start",
    "haproxy|-Ws|-f|/etc/haproxy/haproxy.cfg|-p|/run/haproxy.pid",
    "openssl|req|-new|-key|server.key|-out|server.csr",
    "openssl|s_client|-connect|h:443",
    "ldapsearch|-x|-W|-D|cn=admin,dc=x|-b|dc=x",
    "unattended-upgrade-shutdown|--wait-for-signal",
    "kumo|ps|--all|--sort|-rss",
    "k2i|--listen|127.0.0.1:8000",
];

#[test]
fn no_secret_of_the_corpora_is_left() {
    assert!(SECRETS.len() >= 150, "{}", SECRETS.len());
    let left: Vec<String> = SECRETS
        .iter()
        .chain(corpus::SECRETS)
        .filter_map(|(line, secret)| {
            let clean = shown(&redact(&arguments(line)));
            let secret = secret.replace('§', "");
            clean.contains(&secret).then(|| format!("{line}\n   -> {clean}"))
        })
        .collect();
    assert!(left.is_empty(), "{} of {}:\n{}", left.len(), SECRETS.len(), left.join("\n"));
}

#[test]
fn harmless_lines_stay_as_they_are() {
    assert!(HARMLESS.len() >= 100, "{}", HARMLESS.len());
    let changed: Vec<String> = HARMLESS
        .iter()
        .chain(corpus::HARMLESS)
        .filter_map(|line| {
            let argv = arguments(line);
            let clean = redact(&argv);
            (*clean != argv).then(|| format!("{line}\n   -> {}", shown(&clean)))
        })
        .collect();
    assert!(changed.is_empty(), "{}:\n{}", changed.len(), changed.join("\n"));
}

#[test]
fn what_is_around_a_secret_stays() {
    let cases = [
        ("app|--password=hunter2|--port=80", "app|--password=*****|--port=80"),
        ("sh|-c|mysql -uroot -phunter2 db ¦ gzip", "sh|-c|mysql -uroot -p***** db ¦ gzip"),
        ("helm|--set|db.password=hunter2,db.host=h", "helm|--set|db.password=*****,db.host=h"),
        ("psql|password=hunter2 host=h", "psql|password=***** host=h"),
        ("htpasswd|-b|/etc/x|bob|hunter2", "htpasswd|-b|/etc/x|bob|*****"),
        ("curl|-sSu|bob:hunter2|https://h/", "curl|-sSu|bob:*****|https://h/"),
        (
            "app|postgres://bob:hunter2@db/x?password=y2k",
            "app|postgres://bob:*****@db/x?password=*****",
        ),
        ("vault|kv|put|secret/x|a=hunter2", "vault|kv|put|secret/x|a=*****"),
        ("git|clone|https://t0k3n:x@h/r.git", "git|clone|https://t0k3n:*****@h/r.git"),
        ("app|--password|hunter2|--port=80", "app|--password|*****|--port=80"),
        ("mysql|-uroot|-phunter2|db", "mysql|-uroot|-p*****|db"),
        ("curl|-u|bob:hunter2|https://h/", "curl|-u|bob:*****|https://h/"),
        ("curl|-H|Authorization: Bearer t0k3n", "curl|-H|Authorization: Bearer *****"),
        ("app|postgres://bob:hunter2@db/x?a=b", "app|postgres://bob:*****@db/x?a=b"),
        ("app|https://h/?a=b&token=t0k3n&c=d", "app|https://h/?a=b&token=*****&c=d"),
        (
            "app|{\"user\":\"bob\",\"password\":\"hunter2\"}",
            "app|{\"user\":\"bob\",\"password\":\"*****\"}",
        ),
        ("worker: --password=hunter2 --x", "worker: --password=***** --x"),
        ("sh|-c|TOKEN=t0k3n ./run --fast", "sh|-c|TOKEN=***** ./run --fast"),
    ];
    for (line, want) in cases {
        assert_eq!(shown(&redact(&arguments(line))), want.replace('¦', "|"), "for {line}");
    }
}

#[test]
fn no_text_is_read_without_an_end() {
    // Each of them once asked for itself again.
    let deep = "--header=".repeat(2_000);
    let nested = format!("sh|-c|{}x", "sh -c '".repeat(1_000));
    let quotes = "\"'".repeat(5_000);
    let assigned = "a=".repeat(7_000);
    for line in
        ["wget|--header=Accept: text/html", "app|header=x: y", &deep, &nested, &quotes, &assigned]
    {
        let argv = arguments(line);
        redact(&argv);
    }
}

#[test]
fn stripped_lines_have_no_arguments() {
    let strip = |line| shown(&strip(&arguments(line)));
    assert_eq!(strip("/usr/bin/app|--password=x|y"), "/usr/bin/app|*****");
    assert_eq!(strip("app"), "app");
    assert_eq!(strip("postgres: bob shop"), "postgres:|*****");
    assert_eq!(strip(""), "");
}

#[test]
fn long_arguments_are_left_out_as_a_whole() {
    let argv = [b"app\0".as_slice(), &vec![b'a'; ARGUMENT_BYTES_MAX + 1], b"\0x\0"].concat();
    assert_eq!(shown(&redact(&argv)), "app|*****|x");
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_taken(argv: Vec<u8>) {
        let clean = redact(&argv);
        let count = |bytes: &[u8]| memchr::memchr_iter(0, bytes).count();
        assert!(count(&clean) <= count(&argv), "no argument is added");
        beginning(&argv);
        strip(&argv);
    }

    #[test]
    fn what_stands_beside_a_secret_hides_it_from_nobody(
        before in "[a-zA-Z0-9 =:/@&?\"'{}.\\-|_;()<>$%,]{0,60}",
        after in "[a-zA-Z0-9 =:/@&?\"'{}.\\-|_;()<>$%,]{0,60}",
    ) {
        let argv = format!("app|{before}|--db-password=hunter2x|{after}");
        let clean = shown(&redact(&arguments(&argv)));
        assert!(!clean.contains("hunter2x"), "{argv:?} -> {clean:?}");
    }

    #[test]
    fn texts_like_those_of_command_lines(argv in "[a-zA-Z0-9 =:/@&?\"'{}.\\-|_]{0,80}") {
        redact(&argv.replace('|', "\0").into_bytes());
    }
}

#[test]
fn texts_that_are_no_command_lines() {
    let cases = [
        (r#"{"pid":7,"apiKey":"hunter2hunter2"}"#, r#"{"pid":7,"apiKey":"*****"}"#),
        ("cannot log in with password=hunter2 at db", "cannot log in with password=***** at db"),
        (r#"{"pid":${pid}}"#, r#"{"pid":${pid}}"#),
        ("", ""),
    ];
    for (text, want) in cases {
        assert_eq!(super::prose(text), want, "for {text}");
    }
}
