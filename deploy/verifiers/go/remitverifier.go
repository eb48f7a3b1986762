// Package remitverifier checks credentials of a Remit broker in memory, and learns of every revoke through the broker's feed.
//
//	verifier, err := remitverifier.Follow(ctx, "https://broker.example.com", "https://git.example.com", remitverifier.Options{})
//	verified, err := verifier.Check(token, "")  // there is no other way to verified.Claims()
//	if err != nil { … }                         // a Denied: 503 if it is Stale or Gap, else 401
//
// One file to copy, on go-jose. Verifier is the rules, with time as a parameter; Follower brings it what the broker says. Whatever goes
// wrong ends in a denial.
package remitverifier

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Denied is why not. For logs: tell a caller no more than yes or no.
type Denied string

// The reasons, in the order in which they are looked for.
const (
	Invalid    Denied = "invalid"
	Gap        Denied = "gap"
	Stale      Denied = "stale"
	Generation Denied = "generation"
	Revoked    Denied = "revoked"
	Locked     Denied = "locked"
)

func (d Denied) Error() string { return string(d) }

// The types of what is signed, each with keys of its own.
const (
	state       = "remit-revocations+jwt"
	accessToken = "at+jwt"
	svid        = "JWT"
)

// In milliseconds: by how much `nbf` and `iat` of a token may be ahead; the broker's clock may differ; an entry outlives its end.
const skew, offset, linger = 5_000, 1_000, 60_000

var (
	jwsForm    = regexp.MustCompile(`^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)
	taskForm   = regexp.MustCompile(`^task_[0-7][0-9a-hjkmnp-tv-z]{25}(-[0-9a-z]{10}){0,8}$`)
	lockForm   = regexp.MustCompile(`^lock_[0-7][0-9a-hjkmnp-tv-z]{25}$`)
	brokerForm = regexp.MustCompile(`^[0-9A-Za-z_-]{1,64}$`)
	workloads  = regexp.MustCompile(`^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*(/\*)?$`)
	anyForm    = regexp.MustCompile(``)
	entryForms = map[string]*regexp.Regexp{
		"task": taskForm, "lease": regexp.MustCompile(`^([0-9a-f]{32}|01[0-9a-f]{38})$`), "key": regexp.MustCompile(`.`),
	}
)

// Clocks are in milliseconds. The second never jumps, and counts from anywhere.
type Clocks struct{ Wall, Mono int64 }

// Verified is a credential that was checked, and was good then. Check it again at the next request.
type Verified struct{ claims map[string]any }

// Claims are what it says.
func (v Verified) Claims() map[string]any { return v.claims }

// Reading. Nothing is skipped that is not understood. A reader remembers whether all was as it must be, and reads on.
type reader struct{ malformed bool }

func (r *reader) need(condition bool) bool {
	r.malformed = r.malformed || !condition
	return condition
}

func (r *reader) text(value any, form *regexp.Regexp) string {
	text, is := value.(string)
	r.need(is && form.MatchString(text))
	return text
}

func (r *reader) object(value any, allowed string) map[string]any {
	object, is := value.(map[string]any)
	r.need(is)
	for name := range object {
		r.need(allowed == "" || strings.Contains(allowed, " "+name+" "))
	}
	return object
}

func (r *reader) count(value any) int64 {
	number, is := value.(float64)
	if !r.need(is && number >= 0 && number < 1<<53 && number == math.Trunc(number)) {
		return 0
	}
	return int64(number)
}

func (r *reader) milliseconds(value any) int64 {
	number, is := value.(float64)
	if !r.need(is && number >= 0 && number < (1<<53)/1000) {
		return 0
	}
	return int64(math.Round(number * 1000))
}

func (r *reader) optional(object map[string]any, name string, otherwise int64, read func(any) int64) int64 {
	if value, is := object[name]; is {
		return read(value)
	}
	return otherwise
}

func (r *reader) json(octets []byte) (object map[string]any) {
	r.need(json.Unmarshal(octets, &object) == nil && object != nil)
	return object
}

type entry struct {
	kind, name  string
	until, gone int64 // by the wall clock, by the monotonic clock
	lock        lock
}

type lock struct {
	at, until     int64
	match         map[string]any
	after, before int64
	released      bool
}

func (r *reader) entry(value any, mono int64) entry {
	object := r.object(value, " task lease key lock at until ")
	r.need(len(object) == 3) // both times, and one kind
	until, at := r.milliseconds(object["until"]), r.milliseconds(object["at"])
	read := entry{until: until, gone: mono + until - at}
	if value, is := object["lock"]; is {
		members := r.object(value, " id match declared_after declared_before released ")
		read.kind, read.name = "lock", r.text(members["id"], lockForm)
		read.lock = r.lock(members)
		read.lock.at, read.lock.until = at, until
	}
	for kind, form := range entryForms {
		if value, is := object[kind]; is {
			read.kind, read.name = kind, r.text(value, form)
		}
	}
	return read
}

func (r *reader) lock(members map[string]any) lock {
	read := lock{
		match:  r.object(members["match"], " workload owner sandbox attestor issuer all "),
		after:  r.optional(members, "declared_after", 0, r.milliseconds),
		before: r.optional(members, "declared_before", math.MaxInt64, r.milliseconds),
	}
	r.need(len(read.match) > 0)
	for name, value := range read.match {
		switch name {
		case "all":
			r.need(value == true)
		case "workload":
			r.text(value, workloads)
		default:
			r.text(value, anyForm)
		}
	}
	_, read.released = members["released"]
	r.need(!read.released || members["released"] == true)
	return read
}

// Verifier is the rules. It denies everything until it has keys and a state, and does nothing by itself.
type Verifier struct {
	mutex            sync.Mutex
	issuer, audience string
	keys             map[[2]string]*jose.JSONWebKey // by type and key id
	unknownKey       atomic.Bool
	entries, locks   map[[2]string]entry // by kind and id
	generation       int64               // of the state that is held, as are the next two
	broker           string
	sequence         int64
	highest          map[string]int64 // the highest sequence of each broker in this generation
	anchorMono       int64            // when a snapshot was asked for
	anchorWall       int64            // its `iat`, which is no earlier; 0: there is none
	freshUntil       int64            // by the monotonic clock
	window           int64            // for how long the last state is good
	gap, due         bool             // something was missed; a snapshot is to be asked for
	witness          string           // shows a broker that has forgotten that it has
}

// never is before every instant.
const never = math.MinInt64

// New makes a verifier for the service that is `audience`.
func New(issuer, audience string) *Verifier {
	return &Verifier{issuer: issuer, audience: audience, entries: map[[2]string]entry{}, locks: map[[2]string]entry{},
		highest: map[string]int64{}, generation: -1, freshUntil: never, window: 5_000, due: true}
}

// SetKeys takes the answers of /jwks, /v1/revocations/jwks and /spiffe/bundle. One kind of key never serves for another.
func (v *Verifier) SetKeys(jwks, revocationJWKS, spiffeBundle []byte) error {
	keys := map[[2]string]*jose.JSONWebKey{}
	for _, kind := range []struct {
		typ, use, purpose string
		document          []byte
	}{{accessToken, "sig", "access_token", jwks}, {state, "sig", "revocations", revocationJWKS}, {svid, "jwt-svid", "", spiffeBundle}} {
		var set struct{ Keys []json.RawMessage }
		if err := json.Unmarshal(kind.document, &set); err != nil {
			return err
		}
		for _, raw := range set.Keys {
			var about struct {
				Use, Kid, Kty string
				Purpose       string `json:"remit_purpose"`
			}
			if err := json.Unmarshal(raw, &about); err != nil {
				return err
			}
			if about.Use != kind.use || about.Purpose != kind.purpose {
				continue
			}
			key := &jose.JSONWebKey{}
			if err := key.UnmarshalJSON(raw); err != nil {
				return err
			}
			key.Algorithm = "ES256"
			if kind.typ == accessToken && about.Kty == "RSA" {
				key.Algorithm = "RS256"
			}
			keys[[2]string{kind.typ, about.Kid}] = key
		}
	}
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.keys = keys
	return nil
}

// signed yields type, key id and payload of what the broker signed.
func (v *Verifier) signed(text string, isState bool) (typ, kid string, payload []byte, ok bool) {
	if !jwsForm.MatchString(text) {
		return "", "", nil, false
	}
	encoded, _, _ := strings.Cut(text, ".")
	octets, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	header := map[string]string{}
	if err != nil || json.Unmarshal(octets, &header) != nil {
		return "", "", nil, false
	}
	typ, kid = header["typ"], header["kid"]
	v.mutex.Lock()
	key := v.keys[[2]string{typ, kid}]
	_, dead := v.entries[[2]string{"key", kid}]
	v.mutex.Unlock()
	if key == nil {
		v.unknownKey.Store(true)
	}
	// A token is told by its own answer why it is not accepted.
	if isState && dead {
		return "", "", nil, false
	}
	if len(header) != 3 || (typ == state) != isState || key == nil || key.Algorithm != header["alg"] {
		return "", "", nil, false
	}
	jws, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(key.Algorithm)})
	if err != nil {
		return "", "", nil, false
	}
	payload, err = jws.Verify(key.Key)
	return typ, kid, payload, err == nil
}

// Snapshot takes the answer to a request that was sent with this nonce at `sent`. False: ask again.
func (v *Verifier) Snapshot(jws, nonce string, sent, now Clocks) bool {
	_, _, payload, signed := v.signed(jws, true)
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.due = true
	read, ok := v.read(payload, signed, now)
	if !ok || read.previous >= 0 || read.nonce != nonce || read.iat < sent.Wall-offset || read.iat > now.Wall+offset {
		return false
	}
	if read.generation < v.generation || read.sequence < v.highestOf(read) {
		v.freshUntil = never // it has forgotten what it told us
		return false
	}
	v.anchorMono, v.anchorWall, v.freshUntil = sent.Mono, read.iat, never
	v.gap, v.due = false, false
	v.take(jws, read, now)
	return true
}

// Push takes what came in the stream. False: leave it and ask for a snapshot.
func (v *Verifier) Push(jws string, now Clocks) bool {
	_, _, payload, signed := v.signed(jws, true)
	v.mutex.Lock()
	defer v.mutex.Unlock()
	if v.due {
		return false
	}
	v.due = true
	read, ok := v.read(payload, signed, now)
	if !ok || read.iat > v.reckoned(now)+offset {
		return false
	}
	if read.generation < v.generation {
		v.freshUntil = never
		return false
	}
	isOld := read.broker == v.broker && read.sequence < v.highestOf(read)
	// Nothing is missing between what is held and what it continues. What it tells again does no harm; in a new generation brokers count anew.
	goesOn := read.previous < 0 || read.previous == v.sequence || read.previous < v.sequence && read.generation == v.generation
	if !isOld && (read.broker != v.broker || !goesOn) {
		v.gap = true
		return false
	}
	v.due = false
	if !isOld {
		v.take(jws, read, now)
	}
	return true
}

// Lost says that the stream ended. What is held is good for as long as it is fresh.
func (v *Verifier) Lost() {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.due = true
}

type claims struct {
	broker, nonce                            string
	iat, exp, generation, sequence, previous int64 // previous: -1 in a snapshot
	entries                                  []entry
}

// read yields a state that the broker signed, and notes a gap where it cannot be read whole: what it says may be a revoke.
func (v *Verifier) read(payload []byte, signed bool, now Clocks) (claims, bool) {
	if !signed {
		return claims{}, false
	}
	r := &reader{}
	object := r.json(payload)
	if !r.malformed && object["iss"] != v.issuer {
		return claims{}, false
	}
	r.object(object, " iss broker iat exp generation sequence previous nonce entries ")
	read := claims{
		broker:     r.text(object["broker"], brokerForm),
		iat:        r.milliseconds(object["iat"]),
		exp:        r.milliseconds(object["exp"]),
		generation: r.count(object["generation"]),
		sequence:   r.count(object["sequence"]),
		previous:   r.optional(object, "previous", -1, r.count),
	}
	if value, is := object["nonce"]; is {
		read.nonce = r.text(value, anyForm)
	}
	entries, is := object["entries"].([]any)
	r.need(is)
	for _, value := range entries {
		read.entries = append(read.entries, r.entry(value, now.Mono))
	}
	r.need(read.exp-read.iat >= 1_000 && read.exp-read.iat <= 60_000 && read.previous <= read.sequence)
	v.gap = v.gap || r.malformed
	return read, !r.malformed
}

// highestOf says how far the broker of a state had counted. With a new generation it may count anew.
func (v *Verifier) highestOf(read claims) int64 {
	if read.generation != v.generation {
		return 0
	}
	return v.highest[read.broker]
}

func (v *Verifier) take(jws string, read claims, now Clocks) {
	for _, e := range read.entries {
		entries := v.entries
		if e.kind == "lock" {
			entries = v.locks
		}
		name := [2]string{e.kind, e.name}
		if held, is := entries[name]; is { // kept for as long as either
			e.until, e.gone = max(e.until, held.until), max(e.gone, held.gone)
			if held.lock.isLater(e.lock) {
				e.lock = held.lock
			}
		}
		entries[name] = e
	}
	for _, entries := range []map[[2]string]entry{v.entries, v.locks} {
		for name, held := range entries {
			if now.Wall > held.until+linger && now.Mono >= held.gone {
				delete(entries, name)
			}
		}
	}
	if read.generation > v.generation {
		v.highest = map[string]int64{}
	}
	v.generation, v.broker, v.sequence, v.highest[read.broker] = read.generation, read.broker, read.sequence, read.sequence
	v.window = read.exp - read.iat
	v.freshUntil = max(v.freshUntil, v.anchorMono+read.exp-v.anchorWall)
	if len(jws) <= 8192 {
		v.witness = jws
	}
}

// reckoned is what the broker's clock says, or a little more; never less.
func (v *Verifier) reckoned(now Clocks) int64 { return v.anchorWall + now.Mono - v.anchorMono }

// Check yields the claims of a token that is good now, which came as a bearer token (`certificate` empty) or, where it is bound to a
// certificate, over a TLS connection whose client proved to have it; `certificate` is its Thumbprint. The error is a Denied.
func (v *Verifier) Check(token, certificate string, now Clocks) (Verified, error) {
	if len(token) > 16_384 {
		return Verified{}, Invalid
	}
	typ, kid, payload, ok := v.signed(token, false)
	if !ok {
		return Verified{}, Invalid
	}
	v.mutex.Lock()
	defer v.mutex.Unlock()
	r := &reader{}
	claims := r.json(payload)
	latest, earliest := now.Wall, now.Wall // a clock that jumps keeps no token alive, and ends no lock
	if v.anchorWall != 0 {
		latest, earliest = max(now.Wall, v.reckoned(now)), min(now.Wall, v.reckoned(now))
	}
	r.need(claims["iss"] == v.issuer && claims["aud"] == v.audience) // one string: a list is not equal to it
	r.need(latest < r.milliseconds(claims["exp"]))
	r.need(max(r.milliseconds(claims["nbf"]), r.milliseconds(claims["iat"])) <= latest+skew)
	sub, client, lease := r.text(claims["sub"], anyForm), r.text(claims["client_id"], anyForm), r.text(claims["jti"], anyForm)
	r.text(claims["scope"], anyForm)
	task := r.object(claims["urn:remit:task"], "")
	id, generation, declared := r.text(task["id"], taskForm), r.count(task["generation"]), r.milliseconds(task["declared_at"])
	r.text(task["owner"], anyForm)
	r.text(task["attestor"], anyForm)
	workload, isSVID := strings.CutSuffix(sub, "/task/"+id)
	r.need(isSVID == (typ == svid))
	if value, is := claims["cnf"]; is { // bound to a key (`jkt`): this verifier checks no proofs, and refuses it
		binding := r.object(value, " x5t#S256 ")
		r.need(certificate != "" && binding["x5t#S256"] == certificate)
	}
	workloads := []string{client, workload}
	for actor, is := claims["act"]; is && len(workloads) < 32 && !r.malformed; {
		members := r.object(actor, "")
		workloads = append(workloads, r.text(members["sub"], anyForm))
		actor, is = members["act"]
	}
	switch {
	case r.malformed || len(workloads) == 32:
		return Verified{}, Invalid
	case v.gap:
		return Verified{}, Gap
	case now.Mono >= v.freshUntil:
		return Verified{}, Stale
	case generation != v.generation:
		return Verified{}, Generation
	case v.isRevoked(id, lease, kid):
		return Verified{}, Revoked
	}
	for _, held := range v.locks {
		if earliest < held.lock.until && held.lock.matches(task, declared, workloads) {
			return Verified{}, Locked
		}
	}
	return Verified{claims}, nil
}

func (v *Verifier) isRevoked(task, lease, kid string) bool {
	names := [][2]string{{"task", task}, {"lease", lease}, {"key", kid}}
	for at, character := range task {
		if character == '-' {
			names = append(names, [2]string{"task", task[:at]})
		}
	}
	for _, name := range names {
		if _, is := v.entries[name]; is {
			return true
		}
	}
	return false
}

// isLater says which of two entries for a lock says what it is: a released one stays released, and one is what was told of it last.
func (l lock) isLater(other lock) bool {
	if l.released != other.released {
		return l.released
	}
	return l.at > other.at || l.at == other.at && l.until > other.until
}

func (l lock) matches(task map[string]any, declared int64, workloads []string) bool {
	if l.released || declared < l.after || declared >= l.before {
		return false
	}
	for name, wanted := range l.match {
		matches := name == "all"
		switch name {
		case "workload":
			below, isTree := strings.CutSuffix(wanted.(string), "/*")
			matches = slices.ContainsFunc(workloads, func(workload string) bool {
				return !isTree && workload == wanted || isTree && strings.HasPrefix(workload, below+"/")
			})
		case "issuer":
			matches = task["evidence_issuer"] == wanted
		case "owner", "sandbox", "attestor":
			matches = task[name] == wanted
		}
		if !matches {
			return false
		}
	}
	return true
}

// What the broker says, over HTTP

// Options of Follow; none is required.
type Options struct {
	Bearer    string            // how the service authenticates, for whoever waits until all have heard of a revoke
	Transport http.RoundTripper // where the broker's certificate is none that the system trusts
}

// Follower is a verifier that keeps up with the broker. It denies until the first snapshot, and whenever it lags.
type Follower struct {
	verifier *Verifier
	issuer   string
	options  Options
	client   http.Client
	keysAt   time.Time
}

// Follow makes a verifier that keeps up with the broker `issuer` until ctx is done, for the service that is `audience`.
func Follow(ctx context.Context, issuer, audience string, options Options) (*Follower, error) {
	parsed, err := url.Parse(issuer)
	if err != nil {
		return nil, err
	}
	host := parsed.Hostname()
	if parsed.Scheme != "https" && host != "127.0.0.1" && host != "::1" && host != "localhost" {
		return nil, fmt.Errorf("the issuer is no https URL: whoever is in between could say who signs")
	}
	// Who else than the broker would say which keys sign, and be shown the bearer token?
	noRedirects := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	f := &Follower{verifier: New(issuer, audience), issuer: issuer, options: options}
	f.client = http.Client{Transport: options.Transport, CheckRedirect: noRedirects}
	go f.follow(ctx)
	return f, nil
}

// Check is Verifier.Check, now.
func (f *Follower) Check(token, certificate string) (Verified, error) {
	return f.verifier.Check(token, certificate, clocks())
}

func (f *Follower) follow(ctx context.Context) {
	for pause := 100 * time.Millisecond; ctx.Err() == nil; {
		begun := time.Now()
		err := f.fetchKeys(ctx)
		if err == nil {
			err = f.snapshot(ctx)
		}
		if err == nil {
			err = f.stream(ctx)
		}
		f.verifier.Lost()
		slog.Warn("the feed of the broker", "issuer", f.issuer, "error", err)
		// Not all verifiers at once after a restart of the broker, and none in a tight loop.
		pause = min(2*pause, 5*time.Second)
		if time.Since(begun) > 10*time.Second {
			pause = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(mathrand.N(pause)):
		}
	}
}

func (f *Follower) snapshot(ctx context.Context) error {
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	nonce := base64.RawURLEncoding.EncodeToString(random)
	sent := clocks()
	body, err := f.get(ctx, "/v1/revocations?nonce="+nonce, "Remit-Last-State", f.verifier.witness)
	if err != nil {
		return err
	}
	if !f.verifier.Snapshot(string(body), nonce, sent, clocks()) {
		return fmt.Errorf("a snapshot was refused")
	}
	f.acknowledge(ctx)
	return nil
}

// stream reads what follows the snapshot, until the stream ends or something is missed.
func (f *Follower) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A stream that was silent for a whole window has made us stale already.
	window := time.Duration(f.verifier.window) * time.Millisecond
	silence := time.AfterFunc(window, cancel)
	defer silence.Stop()
	held := fmt.Sprintf("%s:%d", f.verifier.broker, f.verifier.sequence)
	answer, err := f.do(ctx, http.MethodGet, "/v1/revocations", nil, "Accept", "text/event-stream", "Last-Event-ID", held)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, limit)
	var event, data string
	for lines.Scan() {
		silence.Reset(window)
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch {
		case name == "event":
			event = strings.TrimSpace(value)
		case name == "data":
			data = strings.TrimSpace(value)
		case lines.Text() == "":
			if event == "state" && !f.verifier.Push(data, clocks()) {
				return fmt.Errorf("a state was missed or refused")
			}
			if now := fmt.Sprintf("%s:%d", f.verifier.broker, f.verifier.sequence); now != held {
				held = now
				f.acknowledge(ctx)
			}
			f.refreshKeys(ctx)
			event, data = "", ""
		}
	}
	return fmt.Errorf("the stream ended: %v", lines.Err())
}

func (f *Follower) fetchKeys(ctx context.Context) error {
	f.keysAt = time.Now()
	f.verifier.unknownKey.Store(false)
	var documents [3][]byte
	for at, path := range []string{"/jwks", "/v1/revocations/jwks", "/spiffe/bundle"} {
		document, err := f.get(ctx, path, "Accept", "application/json")
		if err != nil {
			return err
		}
		documents[at] = document
	}
	return f.verifier.SetKeys(documents[0], documents[1], documents[2])
}

// refreshKeys fetches them every minute, and soon after something came with a key that is unknown. Without an answer the old ones serve.
func (f *Follower) refreshKeys(ctx context.Context) {
	age := time.Since(f.keysAt)
	if age > time.Minute || age > 5*time.Second && f.verifier.unknownKey.Load() {
		if err := f.fetchKeys(ctx); err != nil {
			slog.Warn("the keys of the broker", "issuer", f.issuer, "error", err)
		}
	}
}

func (f *Follower) acknowledge(ctx context.Context) {
	if f.options.Bearer == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	body, err := json.Marshal(map[string]any{"broker": f.verifier.broker, "sequence": f.verifier.sequence})
	if err == nil {
		var answer *http.Response
		if answer, err = f.do(ctx, http.MethodPost, "/v1/revocations/ack", body, "Content-Type", "application/json"); err == nil {
			err = answer.Body.Close()
		}
	}
	if err != nil {
		slog.Warn("not acknowledged at the broker", "issuer", f.issuer, "error", err)
	}
}

const limit = 1 << 26 // octets of an answer

func (f *Follower) get(ctx context.Context, path string, headers ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	answer, err := f.do(ctx, http.MethodGet, path, nil, headers...)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, limit+1))
	if err == nil && len(body) > limit {
		err = fmt.Errorf("an answer is too long")
	}
	return body, err
}

func (f *Follower) do(ctx context.Context, method, path string, body []byte, headers ...string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, f.issuer+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for at := 0; at < len(headers); at += 2 {
		if headers[at+1] != "" {
			request.Header.Set(headers[at], headers[at+1])
		}
	}
	if f.options.Bearer != "" {
		request.Header.Set("Authorization", "Bearer "+f.options.Bearer)
	}
	answer, err := f.client.Do(request)
	if err == nil && answer.StatusCode/100 != 2 {
		answer.Body.Close()
		err = fmt.Errorf("%s: %s", path, answer.Status)
	}
	return answer, err
}

var started = time.Now()

// Go reads a clock beside the wall clock that does not jump, and stands still while the machine sleeps.
func clocks() Clocks {
	return Clocks{Wall: time.Now().UnixMilli(), Mono: time.Since(started).Milliseconds()}
}

// Thumbprint is what a token that is bound to a certificate (DER) says of it.
func Thumbprint(certificate []byte) string {
	digest := sha256.Sum256(certificate)
	return base64.RawURLEncoding.EncodeToString(digest[:])
}
