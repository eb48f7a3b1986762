//! Textual encodings (RFC 7468): one writer, and a reader that takes one block and nothing around it.

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// A document under a label.
#[must_use]
pub fn write(label: &str, document: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(document);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END " + label + "-----\n"
}

/// The document in `text`, if that is one block under one of `labels`, with white space around it at most.
#[must_use]
pub fn read_one(text: &str, labels: &[&str]) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    let block = |label: &&str| {
        let body = text.strip_prefix(&format!("-----BEGIN {label}-----"))?;
        body.strip_suffix(&format!("-----END {label}-----"))
    };
    let body = labels.iter().find_map(block)?;
    if !body.starts_with(['\r', '\n']) {
        return None;
    }
    let digits: Vec<u8> = body.bytes().filter(|octet| !octet.is_ascii_whitespace()).collect();
    BASE64_STANDARD.decode(digits).ok().filter(|document| !document.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_is_read_and_nothing_else() {
        let pem = write("THING", &[7; 100]);
        assert_eq!(read_one(&pem, &["OTHER", "THING"]), Some(vec![7; 100]));
        let crlf = format!("\n{}", pem.replace('\n', "\r\n"));
        assert_eq!(read_one(&crlf, &["THING"]), Some(vec![7; 100]));
        let twice = pem.repeat(2);
        let (before, after) = (format!("x{pem}"), format!("{pem}x"));
        let (empty, cut) = (write("THING", &[]), &pem[..pem.len() - 3]);
        let inline = pem.replacen("-----\n", "-----", 1);
        for bad in
            [&twice, &before, &after, &empty, cut, &inline, "", "-----BEGIN THING-----", "!", &pem.replace('c', "!")]
        {
            assert_eq!(read_one(bad, &["THING"]), None, "{bad}");
        }
        assert_eq!(read_one(&pem, &["OTHER"]), None);
    }
}
