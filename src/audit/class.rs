//! What an event is to others: its class in the Open Cybersecurity Schema Framework (OCSF 1.3 and later).

use super::Event;

/// A class of OCSF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// There is none for it.
    BaseEvent,
    /// The log itself.
    EventLogActivity,
    /// Whether somebody is who they say they are.
    Authentication,
    /// What somebody may do: granted, or not.
    AuthorizeSession,
    /// Keys, tasks and policies come, change and go.
    EntityManagement,
    /// Somebody asked, or told.
    ApiActivity,
}

impl Class {
    /// Its `class_uid`.
    #[must_use]
    pub fn uid(self) -> u32 {
        match self {
            Self::BaseEvent => 0,
            Self::EventLogActivity => 1008,
            Self::Authentication => 3002,
            Self::AuthorizeSession => 3003,
            Self::EntityManagement => 3004,
            Self::ApiActivity => 6003,
        }
    }

    /// Its `class_name`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BaseEvent => "Base Event",
            Self::EventLogActivity => "Event Log Activity",
            Self::Authentication => "Authentication",
            Self::AuthorizeSession => "Authorize Session",
            Self::EntityManagement => "Entity Management",
            Self::ApiActivity => "API Activity",
        }
    }
}

impl Event {
    /// Its class.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::EvidenceRefused { .. } | Self::MoreEvidenceRefused { .. } => Class::Authentication,
            Self::TaskDeclared { .. }
            | Self::DeclarationDenied { .. }
            | Self::CredentialMinted { .. }
            | Self::CertificateMinted { .. }
            | Self::MintDenied { .. }
            | Self::MintRefused { .. }
            | Self::TaskRenewed { .. }
            | Self::TaskTokenIssued { .. }
            | Self::RenewalDenied { .. }
            | Self::RenewalRefused { .. }
            | Self::LockedOut { .. }
            | Self::OperatorRefused { .. }
            | Self::CallerRefused { .. }
            | Self::MoreCallersRefused { .. } => Class::AuthorizeSession,
            Self::EndRequested { .. }
            | Self::TaskEnded { .. }
            | Self::EndReplayed { .. }
            | Self::GenerationEntered { .. }
            | Self::LockRequested { .. }
            | Self::LockExtensionRequested { .. }
            | Self::LockReleaseRequested { .. }
            | Self::LockExpanded { .. }
            | Self::CredentialRevocationRequested { .. }
            | Self::CredentialRevoked { .. }
            | Self::CredentialRevocationReplayed { .. }
            | Self::ServerCertificateMinted { .. }
            | Self::ConfigurationAdopted { .. }
            | Self::KeyRotationRequested { .. }
            | Self::KeyImported { .. }
            | Self::KeyActivated { .. }
            | Self::KeyAbandoned { .. }
            | Self::KeyTaintRequested { .. }
            | Self::KeyTainted { .. } => Class::EntityManagement,
            Self::Reported { .. }
            | Self::ReportRefused { .. }
            | Self::Looked { .. }
            | Self::LockWeighed { .. }
            | Self::Introspected { .. }
            | Self::RefusedAfterEnd { .. }
            | Self::Signalled { .. }
            | Self::VerificationRequested { .. } => Class::ApiActivity,
            Self::SegmentOpened { .. }
            | Self::SegmentDropped { .. }
            | Self::LogTermsAdopted(_)
            | Self::EarlierLogGone { .. }
            | Self::TailUnwitnessed { .. } => Class::EventLogActivity,
            Self::Settled { .. } => Class::BaseEvent,
        }
    }
}
