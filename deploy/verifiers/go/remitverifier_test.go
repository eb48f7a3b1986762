package remitverifier

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

type document struct {
	Issuer, Audience string
	JWKS             json.RawMessage `json:"jwks"`
	RevocationJWKS   json.RawMessage `json:"revocation_jwks"`
	SPIFFEBundle     json.RawMessage `json:"spiffe_bundle"`
	Vectors          []struct {
		Name  string
		Steps []struct {
			AtWall     int64 `json:"at_wall_ms"`
			AtMono     int64 `json:"at_mono_ms"`
			SentWall   int64 `json:"sent_wall_ms"`
			SentMono   int64 `json:"sent_mono_ms"`
			Snapshot   *string
			Nonce      string
			Push       *string
			Disconnect bool
			Then       string
			Check      *struct{ Token, Certificate, Expect string }
		}
	}
}

func TestVectors(t *testing.T) {
	files, err := filepath.Glob("../../vectors/*.json")
	if err != nil || len(files) < 11 {
		t.Fatal(err, files)
	}
	for _, file := range files {
		octets, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var document document
		if err := json.Unmarshal(octets, &document); err != nil {
			t.Fatal(err)
		}
		for _, vector := range document.Vectors {
			t.Run(filepath.Base(file)+"/"+vector.Name, func(t *testing.T) {
				verifier := New(document.Issuer, document.Audience)
				if err := verifier.SetKeys(document.JWKS, document.RevocationJWKS, document.SPIFFEBundle); err != nil {
					t.Fatal(err)
				}
				then := map[bool]string{true: "follow", false: "snapshot"}
				for at, step := range vector.Steps {
					now, said, expected := Clocks{step.AtWall, step.AtMono}, "", step.Then
					switch {
					case step.Snapshot != nil:
						said = then[verifier.Snapshot(*step.Snapshot, step.Nonce, Clocks{step.SentWall, step.SentMono}, now)]
					case step.Push != nil:
						said = then[verifier.Push(*step.Push, now)]
					case step.Disconnect:
						verifier.Lost()
					case step.Check != nil:
						said, expected = "accept", step.Check.Expect
						if _, err := verifier.Check(step.Check.Token, step.Check.Certificate, now); err != nil {
							said = err.Error()
						}
					default:
						t.Fatalf("step %d is of no kind", at)
					}
					if said != expected {
						t.Fatalf("step %d: %s, and not %s", at, said, expected)
					}
				}
			})
		}
	}
}
