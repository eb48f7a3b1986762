// Checks credentials of a Remit broker in memory, and learns of every revoke through the broker's feed.
//
//     const verifier = follow("https://broker.example.com", "https://git.example.com");
//     const { claims } = await verifier.check(token); // there is no other way to them
//     // throws Denied: answer 503 if its reason is "stale" or "gap", else 401
//
// One file to copy, on jose. Verifier is the rules, with time as a parameter; Follower brings it what the broker says. Whatever goes
// wrong ends in a denial.

import { compactVerify, decodeProtectedHeader, importJWK, type CryptoKey, type JWK } from "jose";

export type Reason = "invalid" | "gap" | "stale" | "generation" | "revoked" | "locked";

/** No. The reason is for logs: tell a caller no more than yes or no. */
export class Denied extends Error {
  constructor(readonly reason: Reason) {
    super(reason);
  }
}

/** It is the broker's, and can't be read whole: what it says may be a revoke. */
class Malformed extends Error {}

/** In milliseconds. The second never jumps, and counts from anywhere. */
export interface Clocks {
  wall: number;
  mono: number;
}

/** A credential that was checked, and was good then. Check it again at the next request. */
export interface Verified {
  readonly claims: Readonly<Record<string, unknown>>;
}

export interface KeyDocument {
  keys: (JWK & { remit_purpose?: string })[];
}

// The types of what is signed, each with keys of its own.
const STATE = "remit-revocations+jwt";
const [ACCESS_TOKEN, SVID] = ["at+jwt", "JWT"];

const JWS = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/;
const TASK = /^task_[0-7][0-9a-hjkmnp-tv-z]{25}(-[0-9a-z]{10}){0,8}$/;
const LOCK = /^lock_[0-7][0-9a-hjkmnp-tv-z]{25}$/;
const BROKER = /^[0-9A-Za-z_-]{1,64}$/;
const FORMS = new Map([["task", TASK], ["lease", /^([0-9a-f]{32}|01[0-9a-f]{38})$/], ["key", /./]]);
const WORKLOADS = /^spiffe:\/\/[a-z0-9._-]+(\/[A-Za-z0-9._-]+)*(\/\*)?$/;
const MEMBERS = ["iss", "broker", "iat", "exp", "generation", "sequence", "previous", "nonce", "entries"];
const MATCHES = ["workload", "owner", "sandbox", "attestor", "issuer", "all"];

const SKEW = 5_000; // milliseconds by which `nbf` and `iat` of a token may be ahead
const OFFSET = 1_000; // by which the broker's clock may differ from ours
const LINGER = 60_000; // for which an entry is kept after its end

// Reading. Nothing is skipped that is not understood.

type Members = Record<string, unknown>;

function need(condition: boolean): asserts condition {
  if (!condition) throw new Malformed();
}

function members(value: unknown, allowed?: string[]): Members {
  need(typeof value === "object" && value !== null && !Array.isArray(value));
  need(allowed === undefined || Object.keys(value).every((name) => allowed.includes(name)));
  return value as Members;
}

function text(value: unknown, form = /(?:)/): string {
  need(typeof value === "string" && form.test(value));
  return value;
}

function count(value: unknown): number {
  need(Number.isSafeInteger(value) && (value as number) >= 0);
  return value as number;
}

function milliseconds(value: unknown): number {
  need(typeof value === "number" && value >= 0 && value < 2 ** 53 / 1000); // neither infinite nor not a number
  return Math.round(value * 1000);
}

function parsed(octets: Uint8Array): Members {
  let value;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(octets));
  } catch {
    throw new Malformed();
  }
  return members(value);
}

interface Lock {
  at: number;
  until: number;
  match: Members;
  after: number;
  before: number;
  released: boolean;
}

interface Entry {
  name: string; // kind and id
  until: number;
  gone: number; // by the monotonic clock
  lock: Lock | undefined;
}

function readLock(lock: Members, at: number, until: number): Lock {
  const match = members(lock["match"], MATCHES);
  need(Object.keys(match).length > 0 && [undefined, true].includes(lock["released"] as undefined | true));
  for (const [name, value] of Object.entries(match)) {
    if (name === "all") need(value === true);
    else text(value, name === "workload" ? WORKLOADS : undefined);
  }
  return {
    at,
    until,
    match,
    after: "declared_after" in lock ? milliseconds(lock["declared_after"]) : 0,
    before: "declared_before" in lock ? milliseconds(lock["declared_before"]) : Infinity,
    released: lock["released"] === true,
  };
}

function readEntry(value: unknown, mono: number): Entry {
  const entry = members(value);
  const [kind, ...more] = Object.keys(entry).filter((name) => name !== "at" && name !== "until");
  need(kind !== undefined && more.length === 0);
  const [at, until] = [milliseconds(entry["at"]), milliseconds(entry["until"])];
  const held = { until, gone: mono + until - at };
  if (kind === "lock") {
    const lock = members(entry["lock"], ["id", "match", "declared_after", "declared_before", "released"]);
    return { ...held, name: `lock ${text(lock["id"], LOCK)}`, lock: readLock(lock, at, until) };
  }
  const form = FORMS.get(kind);
  need(form !== undefined);
  return { ...held, name: `${kind} ${text(entry[kind], form)}`, lock: undefined };
}

interface State {
  iat: number;
  exp: number;
  generation: number;
  sequence: number;
  previous: number | undefined; // of a pushed state
  broker: string;
  nonce: string | undefined;
  entries: Entry[];
}

type Keys = Map<string, { key: CryptoKey | Uint8Array; alg: string }>; // by type and key id

/** The rules. It denies everything until it has keys and a state, and does nothing by itself. */
export class Verifier {
  #keys: Keys = new Map();
  #entries = new Map<string, Entry>();
  #locks = new Map<string, Entry>();
  #generation = -1;
  #highest = new Map<string, number>(); // the highest sequence of each broker in this generation
  #anchor: { mono: number; wall: number } | undefined; // when a snapshot was asked for, and its `iat`, which is no earlier
  #freshUntil = -Infinity; // by the monotonic clock
  #gap = false; // something was missed
  #due = true; // a snapshot is to be asked for
  /** Of the state that is held; with them a follower goes on. */
  broker = "";
  sequence = -1;
  /** For how many milliseconds the last state is good. */
  window = 5_000;
  /** Shows a broker that has forgotten that it has. */
  witness: string | undefined;
  unknownKey = false;

  constructor(readonly issuer: string, readonly audience: string) {}

  /** The answers of /jwks, /v1/revocations/jwks and /spiffe/bundle. One kind of key never serves for another. */
  async setKeys(jwks: KeyDocument, revocationJwks: KeyDocument, spiffeBundle: KeyDocument): Promise<void> {
    const keys: Keys = new Map();
    for (const [typ, document, wanted, purpose] of [
      [ACCESS_TOKEN, jwks, "sig", "access_token"],
      [STATE, revocationJwks, "sig", "revocations"],
      [SVID, spiffeBundle, "jwt-svid", undefined],
    ] as const) {
      for (const { use, remit_purpose, ...jwk } of document.keys) {
        if (use !== wanted || remit_purpose !== purpose) continue;
        const alg = typ === ACCESS_TOKEN && jwk.kty === "RSA" ? "RS256" : "ES256";
        keys.set(`${typ} ${jwk.kid}`, { key: await importJWK(jwk, alg), alg });
      }
    }
    this.#keys = keys;
  }

  /** Type, key id and payload of what the broker signed. */
  async #signed(jws: string, types: string[]): Promise<{ typ: string; kid: string; payload: Uint8Array } | undefined> {
    try {
      need(JWS.test(jws));
      const { alg, kid, typ, ...more } = decodeProtectedHeader(jws);
      need(typeof kid === "string" && typeof typ === "string" && types.includes(typ) && Object.keys(more).length === 0);
      const known = this.#keys.get(`${typ} ${kid}`);
      this.unknownKey ||= known === undefined;
      need(known !== undefined && known.alg === alg);
      const { payload } = await compactVerify(jws, known.key, { algorithms: [known.alg] });
      return { typ, kid, payload };
    } catch {
      return undefined;
    }
  }

  /** The answer to a request that was sent with this nonce at `sent`. False: ask again. */
  async snapshot(jws: string, nonce: string, sent: Clocks, now: Clocks): Promise<boolean> {
    this.#due = true;
    const state = await this.#state(jws, now);
    if (state === undefined || state.previous !== undefined || state.nonce !== nonce) return false;
    if (state.iat < sent.wall - OFFSET || state.iat > now.wall + OFFSET) return false;
    if (state.generation < this.#generation || state.sequence < this.#highestOf(state)) {
      this.#freshUntil = -Infinity; // it has forgotten what it told us
      return false;
    }
    this.#anchor = { mono: sent.mono, wall: state.iat };
    this.#freshUntil = -Infinity;
    this.#gap = this.#due = false;
    this.#take(jws, state, now, this.#anchor);
    return true;
  }

  /** What came in the stream, one after the other. False: leave it and ask for a snapshot. */
  async push(jws: string, now: Clocks): Promise<boolean> {
    const anchor = this.#anchor;
    if (this.#due || anchor === undefined) return false;
    this.#due = true;
    const state = await this.#state(jws, now);
    if (state === undefined || state.iat > anchor.wall + now.mono - anchor.mono + OFFSET) return false;
    if (state.generation < this.#generation) {
      this.#freshUntil = -Infinity;
      return false;
    }
    const old = state.broker === this.broker && state.sequence < this.#highestOf(state);
    // Nothing is missing between what is held and what it continues. What it tells again does no harm; in a new generation brokers count anew.
    const { previous = this.sequence, generation } = state;
    const goesOn = previous === this.sequence || (previous < this.sequence && generation === this.#generation);
    if (!old && (state.broker !== this.broker || !goesOn)) {
      this.#gap = true;
      return false;
    }
    this.#due = false;
    if (!old) this.#take(jws, state, now, anchor);
    return true;
  }

  /** The stream ended. What is held is good for as long as it is fresh. */
  lost(): void {
    this.#due = true;
  }

  /** A state that the broker signed. Notes a gap. */
  async #state(jws: string, now: Clocks): Promise<State | undefined> {
    const signed = await this.#signed(jws, [STATE]);
    if (signed === undefined || this.#entries.has(`key ${signed.kid}`)) return undefined;
    try {
      const claims = parsed(signed.payload);
      if (claims["iss"] !== this.issuer) return undefined;
      members(claims, MEMBERS);
      need(Array.isArray(claims["entries"]));
      const state = {
        iat: milliseconds(claims["iat"]),
        exp: milliseconds(claims["exp"]),
        generation: count(claims["generation"]),
        sequence: count(claims["sequence"]),
        previous: "previous" in claims ? count(claims["previous"]) : undefined,
        broker: text(claims["broker"], BROKER),
        nonce: "nonce" in claims ? text(claims["nonce"]) : undefined,
        entries: claims["entries"].map((entry) => readEntry(entry, now.mono)),
      };
      need(state.exp - state.iat >= 1_000 && state.exp - state.iat <= 60_000);
      need(state.previous === undefined || state.previous <= state.sequence);
      return state;
    } catch (error) {
      this.#gap = true;
      if (error instanceof Malformed) return undefined;
      throw error;
    }
  }

  /** How far its broker had counted. With a new generation it may count anew. */
  #highestOf(state: State): number {
    return state.generation === this.#generation ? (this.#highest.get(state.broker) ?? 0) : 0;
  }

  #take(jws: string, state: State, now: Clocks, anchor: { mono: number; wall: number }): void {
    for (const entry of state.entries) {
      const entries = entry.lock ? this.#locks : this.#entries;
      const held = entries.get(entry.name);
      if (held) {
        // Kept for as long as either.
        entry.until = Math.max(entry.until, held.until);
        entry.gone = Math.max(entry.gone, held.gone);
        if (held.lock && entry.lock && isLater(held.lock, entry.lock)) entry.lock = held.lock;
      }
      entries.set(entry.name, entry);
    }
    for (const entries of [this.#entries, this.#locks]) {
      for (const { name, until, gone } of entries.values()) {
        if (now.wall > until + LINGER && now.mono >= gone) entries.delete(name);
      }
    }
    if (state.generation > this.#generation) this.#highest.clear();
    this.#generation = state.generation;
    [this.broker, this.sequence] = [state.broker, state.sequence];
    this.#highest.set(state.broker, state.sequence);
    this.window = state.exp - state.iat;
    this.#freshUntil = Math.max(this.#freshUntil, anchor.mono + state.exp - anchor.wall);
    if (jws.length <= 8192) this.witness = jws;
  }

  /**
   * The claims of a token that is good now, which came as a bearer token or, where it is bound to a certificate, over a TLS connection
   * whose client proved to have it; `certificate` is its thumbprint. Throws Denied.
   */
  async check(token: string, now: Clocks, certificate?: string): Promise<Verified> {
    try {
      need(typeof token === "string" && token.length <= 16_384);
      const signed = await this.#signed(token, [ACCESS_TOKEN, SVID]);
      need(signed !== undefined);
      // What the broker's clock says, or a little more; never less.
      const reckoned = this.#anchor && this.#anchor.wall + now.mono - this.#anchor.mono;
      const [latest, earliest] = [Math.max(now.wall, reckoned ?? 0), Math.min(now.wall, reckoned ?? 0)];
      const claims = parsed(signed.payload);
      need(claims["iss"] === this.issuer && claims["aud"] === this.audience); // one string: a list is not equal to it
      need(latest < milliseconds(claims["exp"]));
      need(Math.max(milliseconds(claims["nbf"]), milliseconds(claims["iat"])) <= latest + SKEW);
      const [lease, subject] = [text(claims["jti"]), text(claims["sub"])];
      text(claims["scope"]);
      const task = members(claims["urn:remit:task"]);
      const [id, generation, declared] = [text(task["id"], TASK), count(task["generation"]), milliseconds(task["declared_at"])];
      text(task["owner"]);
      text(task["attestor"]);
      need(signed.typ === ACCESS_TOKEN || subject.endsWith(`/task/${id}`));
      if ("cnf" in claims) {
        // Bound to a key (`jkt`): this verifier checks no proofs, and refuses it.
        const binding = members(claims["cnf"], ["x5t#S256"]);
        need(certificate !== undefined && binding["x5t#S256"] === certificate);
      }
      const workloads = [text(claims["client_id"]), subject.split("/task/")[0]!];
      for (let actor = claims; "act" in actor; workloads.push(text(actor["sub"]))) {
        actor = members(actor["act"]);
        need(workloads.length < 32);
      }
      if (this.#gap) throw new Denied("gap");
      if (!(now.mono < this.#freshUntil)) throw new Denied("stale");
      if (generation !== this.#generation) throw new Denied("generation");
      const lineage = id.split("-").map((_, at, hops) => `task ${hops.slice(0, at + 1).join("-")}`);
      if ([...lineage, `lease ${lease}`, `key ${signed.kid}`].some((name) => this.#entries.has(name))) throw new Denied("revoked");
      for (const { lock } of this.#locks.values()) {
        if (lock && earliest < lock.until && locks(lock, task, declared, workloads)) throw new Denied("locked"); // a clock that jumps ends none
      }
      return { claims };
    } catch (error) {
      throw error instanceof Denied ? error : new Denied("invalid");
    }
  }
}

/** Which of two entries for a lock says what it is: a released one stays released, and one is what was told of it last. */
function isLater(one: Lock, other: Lock): boolean {
  if (one.released !== other.released) return one.released;
  return one.at > other.at || (one.at === other.at && one.until > other.until);
}

function locks(lock: Lock, task: Members, declared: number, workloads: string[]): boolean {
  const matches = ([name, wanted]: [string, unknown]): boolean => {
    if (name === "all") return true;
    if (name !== "workload") return task[name === "issuer" ? "evidence_issuer" : name] === wanted;
    const path = String(wanted);
    return workloads.some((workload) => (path.endsWith("/*") ? workload.startsWith(path.slice(0, -1)) : workload === path));
  };
  return !lock.released && lock.after <= declared && declared < lock.before && Object.entries(lock.match).every(matches);
}

// What the broker says, over HTTP

const LIMIT = 1 << 26; // octets of an answer

export interface Options {
  /** How the service authenticates, for whoever waits until all have heard of a revoke. */
  bearer?: string;
}

/** A verifier that keeps up with the broker. It denies until the first snapshot, and whenever it lags. */
export class Follower {
  #verifier: Verifier;
  #stopped = new AbortController();
  #keysAt = 0;

  constructor(readonly issuer: string, audience: string, readonly options: Options = {}) {
    const { protocol, hostname } = new URL(issuer);
    if (protocol !== "https:" && !["127.0.0.1", "[::1]", "localhost"].includes(hostname)) {
      throw new Error("the issuer is no https URL: whoever is in between could say who signs");
    }
    this.#verifier = new Verifier(issuer, audience);
    void this.#follow();
  }

  /** As Verifier.check, now. */
  check(token: string, certificate?: string): Promise<Verified> {
    return this.#verifier.check(token, clocks(), certificate);
  }

  /** It learns of nothing any more, and so denies within the window. */
  stop(): void {
    this.#stopped.abort();
  }

  async #follow(): Promise<void> {
    for (let pause = 100; !this.#stopped.signal.aborted; ) {
      const begun = performance.now();
      try {
        await this.#fetchKeys();
        await this.#snapshot();
        await this.#stream();
      } catch (error) {
        if (!this.#stopped.signal.aborted) console.warn(`the feed of ${this.issuer}: ${error}`);
      }
      this.#verifier.lost();
      // Not all verifiers at once after a restart of the broker, and none in a tight loop.
      pause = performance.now() - begun > 10_000 ? 100 : Math.min(2 * pause, 5_000);
      await new Promise((resolve) => setTimeout(resolve, Math.random() * pause));
    }
  }

  async #snapshot(): Promise<void> {
    const nonce = crypto.randomUUID();
    const witness = this.#verifier.witness;
    const sent = clocks();
    const answer = await this.#get(`/v1/revocations?nonce=${nonce}`, witness === undefined ? {} : { "Remit-Last-State": witness });
    if (!(await this.#verifier.snapshot(answer, nonce, sent, clocks()))) throw new Error("a snapshot was refused");
    await this.#acknowledge();
  }

  /** What follows the snapshot, until the stream ends or something is missed. */
  async #stream(): Promise<void> {
    const verifier = this.#verifier;
    const silence = new AbortController();
    const quiet = () => setTimeout(() => silence.abort(), verifier.window); // a whole window of it has made us stale already
    let timer = quiet();
    try {
      let [held, event, data] = [`${verifier.broker}:${verifier.sequence}`, "", ""];
      const headers = { Accept: "text/event-stream", "Last-Event-ID": held };
      for await (const line of lines(await this.#request("/v1/revocations", { headers }, silence.signal))) {
        clearTimeout(timer);
        timer = quiet();
        const [, name, value] = /^([^:]*):?(.*)$/.exec(line) ?? [];
        if (name === "event") event = value!.trim();
        else if (name === "data") data = value!.trim();
        else if (line === "") {
          if (event === "state" && !(await verifier.push(data, clocks()))) throw new Error("a state was missed or refused");
          if (held !== (held = `${verifier.broker}:${verifier.sequence}`)) await this.#acknowledge();
          await this.#refreshKeys();
          [event, data] = ["", ""];
        }
      }
    } finally {
      clearTimeout(timer);
      silence.abort();
    }
  }

  async #fetchKeys(): Promise<void> {
    this.#keysAt = performance.now();
    this.#verifier.unknownKey = false;
    const document = async (path: string) => JSON.parse(await this.#get(path)) as KeyDocument;
    await this.#verifier.setKeys(await document("/jwks"), await document("/v1/revocations/jwks"), await document("/spiffe/bundle"));
  }

  /** Every minute, and soon after something came with a key that is unknown. Without an answer the old ones serve. */
  async #refreshKeys(): Promise<void> {
    if (performance.now() - this.#keysAt > (this.#verifier.unknownKey ? 5_000 : 60_000)) {
      await this.#fetchKeys().catch((error) => console.warn(`the keys of ${this.issuer}: ${error}`));
    }
  }

  async #acknowledge(): Promise<void> {
    if (this.options.bearer === undefined) return;
    const { broker, sequence } = this.#verifier;
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ broker, sequence }) };
    const answered = this.#request("/v1/revocations/ack", request, AbortSignal.timeout(2_000)).then((answer) => answer.body?.cancel());
    await answered.catch((error) => console.warn(`not acknowledged at ${this.issuer}: ${error}`));
  }

  async #get(path: string, headers: Record<string, string> = {}): Promise<string> {
    let body = "";
    for await (const chunk of chunks(await this.#request(path, { headers }, AbortSignal.timeout(2_000)))) {
      body += chunk;
      if (body.length > LIMIT) throw new Error("an answer is too long");
    }
    return body;
  }

  async #request(path: string, request: RequestInit, signal: AbortSignal): Promise<Response> {
    const headers = new Headers(request.headers);
    if (this.options.bearer !== undefined) headers.set("Authorization", `Bearer ${this.options.bearer}`);
    // Who else than the broker would say which keys sign, and be shown the bearer token?
    const answer = await fetch(this.issuer + path, { ...request, headers, cache: "no-store", redirect: "error", signal: AbortSignal.any([signal, this.#stopped.signal]) });
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer;
  }
}

async function* chunks(answer: Response): AsyncGenerator<string> {
  const reader = answer.body!.pipeThrough(new TextDecoderStream("utf-8", { fatal: true })).getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
}

async function* lines(answer: Response): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of chunks(answer)) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop()!;
    if (rest.length > LIMIT) throw new Error("a line is too long");
    for (const line of parts) yield line.replace(/\r$/, "");
  }
}

/** A verifier that keeps up with the broker `issuer`, for the service that is `audience`. */
export function follow(issuer: string, audience: string, options?: Options): Follower {
  return new Follower(issuer, audience, options);
}

/** JavaScript reads a clock beside the wall clock that does not jump, and stands still while the machine sleeps. */
function clocks(): Clocks {
  return { wall: Date.now(), mono: performance.now() };
}

/** What a token that is bound to a certificate (DER) says of it. */
export async function thumbprint(certificate: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", certificate));
  return btoa(String.fromCharCode(...digest)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
