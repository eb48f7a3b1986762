//! Keys whose private half stands in a document that everybody reads: whoever copies an example has a key that is nobody's.

/// SHA-256 of the public key (`SubjectPublicKeyInfo`) in lower-case hexadecimal, and where the private one stands.
const KEYS: [(&str, &str); 12] = [
    ("6fd13c2435a361e7c588cd17f55f5ad3df0177a66c1727a6a200845f4d7ab88c", "RFC 7515 A.2"),
    ("2bd1bb0c44a897c30a7aa0991cde38d8062fe441de50da0f46825344f602e827", "RFC 7515 A.3"),
    ("51b944cdfa544d4c3273aa6bf350625a7dd53bbb6a71723274f538b19a207760", "RFC 7517 A.2 (EC)"),
    ("ad32320cf6c596d884b05381ba573aba8ddd5749b4de8f4a23a79f9a89ddaeb2", "RFC 7517 A.2 (RSA)"),
    ("5a7a78cca4a0f420d9bc62bb669c3c2759e39f723d3ae10dcbe0f0815a07ecd4", "RFC 6979 A.2.5"),
    ("2f95601fa82060b909bfc6b979dbd303d34d34e0afb27ea496beac362f242a4b", "RFC 6979 A.2.6"),
    ("06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9", "RFC 8037 A.1"),
    ("8fb6bad671cfe698393c453357da61b56d757ab8c0f3fb9c87f2849e63131878", "RFC 9500 2.1"),
    ("b2b04340cfaee616ec9c2c62d261b208e54bb197498df52e8cadede23ac0ba5e", "RFC 9500 2.3"),
    ("a40f0f2e2974dc76a82df6ffe08ed0d79955c79e7ad0c20d97ae8f9246ade1c1", "jwt.io, ES256"),
    ("5cd252fb0ce8932436faf8ccd1040981b89ee4ad6b9fe9e2a2b7e71aacb27cd3", "P-256, d = 1"),
    ("29f8fe74f38c49d49810cec736a26732a30bff2e64827b709a1c63340d4f7181", "P-384, d = 1"),
];

/// Where the private half of a key stands for everybody to read, by the digest of the public one.
pub(super) fn stands_in(digest: &str) -> Option<&'static str> {
    KEYS.iter().find(|(known, _)| *known == digest).map(|(_, place)| *place)
}
