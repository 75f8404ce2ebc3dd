//! EDGE: certificates from files and from the system.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use hyper_rustls::ConfigBuilderExt as _;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::export::otlp::config::{Config, FileSetting};

/// TLS 1.2 and 1.3 with the configured roots, else the system's, else those compiled in (an
/// image from scratch has no system roots).
pub(super) fn client_config(config: &Config) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = || {
        ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("setting up TLS")
    };
    // Reading the system's roots takes milliseconds and memory that plain http does not need.
    let needs_roots = config.endpoint.scheme_str() == Some("https");
    let builder = match &config.tls.roots {
        Some(file) => builder()?.with_root_certificates(read_roots(file)?),
        None if needs_roots => match builder()?.with_native_roots() {
            Ok(builder) => builder,
            Err(cause) => {
                tracing::debug!("no system certificates ({cause}), using those compiled in");
                builder()?.with_webpki_roots()
            }
        },
        None => builder()?.with_root_certificates(RootCertStore::empty()),
    };
    let Some(client) = &config.tls.client else {
        return Ok(builder.with_no_client_auth());
    };
    let certificates = read_certificates(&client.certificate)?;
    let key = read_key(&client.key)?;
    builder
        .with_client_auth_cert(certificates, key)
        .with_context(|| {
            format!(
                "the certificate of {} ({}) does not work with the key of {} ({})",
                client.certificate.variable,
                client.certificate.path.display(),
                client.key.variable,
                client.key.path.display()
            )
        })
}

fn read_roots(file: &FileSetting) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(file)? {
        roots.add(certificate).with_context(|| {
            format!(
                "{} ({}) holds an unusable certificate",
                file.variable,
                file.path.display()
            )
        })?;
    }
    Ok(roots)
}

fn read_certificates(file: &FileSetting) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(file)?;
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| not_pem(file, "a certificate"))?;
    if certificates.is_empty() {
        bail!(not_pem(file, "a certificate"));
    }
    Ok(certificates)
}

fn read_key(file: &FileSetting) -> Result<PrivateKeyDer<'static>> {
    let text = read(file)?;
    PrivateKeyDer::from_pem_slice(&text).with_context(|| not_pem(file, "a private key"))
}

fn read(file: &FileSetting) -> Result<Vec<u8>> {
    std::fs::read(&file.path).with_context(|| {
        format!(
            "{} names {}, which cannot be read; correct the path or the permissions",
            file.variable,
            file.path.display()
        )
    })
}

fn not_pem(file: &FileSetting, what: &str) -> String {
    format!(
        "{} names {}, which does not hold {what}; give a PEM file",
        file.variable,
        file.path.display()
    )
}
