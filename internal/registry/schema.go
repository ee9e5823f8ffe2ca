package registry

import (
	"database/sql"
	"fmt"
	"net/url"
	"strconv"
	"sync"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// migrations brings a database from the version that is its index to the next one.
var migrations = []string{schemaV1, schemaV2, schemaV3, schemaV4}

// Times are Unix milliseconds. Blobs carry no file name in clear: key is opaque, so that a file can
// be deleted while the same content is being uploaded again. repo_blob.touched is the blob's lease in a
// repository, manifest.touched that of a manifest of kiln's own.
const schemaV1 = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE repository (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created INTEGER NOT NULL);
CREATE TABLE blob (
	id INTEGER PRIMARY KEY,
	digest TEXT NOT NULL UNIQUE,
	size INTEGER NOT NULL,
	key TEXT, -- file of the content; null when it is in blob_data
	created INTEGER NOT NULL,
	state INTEGER NOT NULL DEFAULT 0,
	state_since INTEGER NOT NULL DEFAULT 0);
CREATE TABLE blob_data (blob INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE repo_blob (
	repo INTEGER NOT NULL,
	blob INTEGER NOT NULL,
	touched INTEGER NOT NULL,
	PRIMARY KEY (repo, blob)) WITHOUT ROWID;
CREATE INDEX repo_blob_by_blob ON repo_blob (blob);
CREATE TABLE manifest (
	id INTEGER PRIMARY KEY,
	repo INTEGER NOT NULL,
	digest TEXT NOT NULL,
	media_type TEXT NOT NULL,
	artifact_type TEXT NOT NULL,
	subject TEXT, -- digest that this manifest refers to
	annotations TEXT, -- JSON; only kept with a subject
	size INTEGER NOT NULL, -- of the manifest itself
	content INTEGER NOT NULL, -- bytes of config and layers
	pushed INTEGER NOT NULL,
	touched INTEGER NOT NULL,
	UNIQUE (repo, digest));
CREATE INDEX manifest_by_subject ON manifest (repo, subject, id) WHERE subject IS NOT NULL;
CREATE INDEX manifest_by_time ON manifest (repo, pushed);
CREATE TABLE manifest_body (manifest INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE manifest_blob (
	manifest INTEGER NOT NULL,
	blob INTEGER NOT NULL,
	PRIMARY KEY (manifest, blob)) WITHOUT ROWID;
CREATE INDEX manifest_blob_by_blob ON manifest_blob (blob);
CREATE TABLE manifest_child (
	manifest INTEGER NOT NULL,
	child TEXT NOT NULL, -- digest, in the same repository
	PRIMARY KEY (manifest, child)) WITHOUT ROWID;
CREATE INDEX manifest_child_by_child ON manifest_child (child);
CREATE TABLE tag (
	repo INTEGER NOT NULL,
	name TEXT NOT NULL,
	manifest INTEGER NOT NULL,
	protected INTEGER NOT NULL, -- 1: never moves
	created INTEGER NOT NULL,
	updated INTEGER NOT NULL,
	PRIMARY KEY (repo, name)) WITHOUT ROWID;
CREATE INDEX tag_by_manifest ON tag (manifest);
CREATE TABLE tag_history (
	id INTEGER PRIMARY KEY,
	repo INTEGER NOT NULL,
	tag TEXT NOT NULL,
	digest TEXT, -- null: the tag was deleted
	at INTEGER NOT NULL,
	run TEXT NOT NULL,
	attempt INTEGER NOT NULL,
	step TEXT NOT NULL);
CREATE INDEX tag_history_by_tag ON tag_history (repo, tag, id);
CREATE TABLE fence (run TEXT PRIMARY KEY, attempt INTEGER NOT NULL, created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL);
`

// openDB opens the database at path with at most conns connections of cacheKiB each.
func openDB(path string, conns, cacheKiB int, pragmas ...string) (*sql.DB, error) {
	q := url.Values{}
	pragmas = append(pragmas, "busy_timeout(10000)", "cache_size(-"+strconv.Itoa(cacheKiB)+")", "temp_store(MEMORY)")
	for _, p := range pragmas {
		q.Add("_pragma", p)
	}
	u := url.URL{Path: path}
	db, err := sql.Open("sqlite", "file:"+u.EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// migrate brings the schema to the newest version, each step in its own transaction.
func migrate(st *statements) error {
	var version int
	if err := st.db.QueryRow(`PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	if version > len(migrations) {
		return fmt.Errorf("schema version %d is newer than %d, the newest this kiln knows: use the version of kiln that wrote it", version, len(migrations))
	}
	for ; version < len(migrations); version++ {
		script := fmt.Sprintf("BEGIN IMMEDIATE; %s; PRAGMA user_version = %d; COMMIT", migrations[version], version+1)
		if _, err := st.db.Exec(script); err != nil {
			return fmt.Errorf("migrate the schema to version %d: %w", version+1, err)
		}
	}
	return nil
}

// statements prepares each query of a database once.
type statements struct {
	db *sql.DB
	mu sync.RWMutex
	m  map[string]*sql.Stmt
}

func newStatements(db *sql.DB) *statements {
	return &statements{db: db, m: map[string]*sql.Stmt{}}
}

func (st *statements) get(query string) (*sql.Stmt, error) {
	st.mu.RLock()
	s := st.m[query]
	st.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if s := st.m[query]; s != nil {
		return s, nil
	}
	s, err := st.db.Prepare(query)
	if err != nil {
		return nil, err
	}
	st.m[query] = s
	return s, nil
}

func (st *statements) close() error { return st.db.Close() }
