//! Certificates for TLS tests: one authority, a server and a client signed by it.

use std::{fs, path::PathBuf, process::Command};

use crate::{process::output, temp::TempDir};

/// Common name in the client's certificate.
pub const CLIENT_NAME: &str = "agent-test-client";

/// Paths of PEM files, alive as long as this is.
#[derive(Debug)]
pub struct Pki {
    directory: TempDir,
}

impl Pki {
    pub fn new() -> Self {
        let pki = Self {
            directory: TempDir::new("pki"),
        };
        pki.authority("ca");
        pki.sign(
            "server",
            "localhost",
            "subjectAltName=DNS:localhost,IP:127.0.0.1\n",
        );
        pki.sign("client", CLIENT_NAME, "extendedKeyUsage=clientAuth\n");
        pki
    }

    pub fn authority_certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    pub fn server_certificate(&self) -> PathBuf {
        self.directory.join("server.crt")
    }

    pub fn server_key(&self) -> PathBuf {
        self.directory.join("server.key")
    }

    pub fn client_certificate(&self) -> PathBuf {
        self.directory.join("client.crt")
    }

    pub fn client_key(&self) -> PathBuf {
        self.directory.join("client.key")
    }

    fn authority(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN=agent-test-authority -keyout {name}.key -out {name}.crt"
        ));
    }

    fn sign(&self, name: &str, common_name: &str, extensions: &str) {
        fs::write(self.directory.join("extensions"), extensions).expect("a file of our own");
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={common_name} \
             -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
             -extfile extensions -out {name}.crt"
        ));
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        output(
            command
                .current_dir(self.directory.path())
                .args(arguments.split_whitespace()),
        );
    }
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}
