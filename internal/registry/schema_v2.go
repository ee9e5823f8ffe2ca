package registry

// schemaV2 counts: what a page of metadata shows, what a deletion frees and what collection may take is
// read from a row instead of being added up. Triggers keep the counts, so no writer can forget one;
// [Store.Check] compares them with what they count.
//
// repository.internal marks kiln's own repositories. They count for nothing that people see: what is only
// staged is shared with nobody. A blob's links are the repositories that have it and users those of them
// that are not internal; repo_blob.refs are the manifests of the repository that need it there. Held are
// the tags and indexes that name a manifest. A manifest that nothing holds and that has no subject is
// untagged. Locks are sets of lockWrite and the others. A retired tag is a unique one that was deleted.
// Doomed are files whose rows are gone.
const schemaV2 = `
ALTER TABLE repository ADD COLUMN internal INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repository ADD COLUMN locks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repository ADD COLUMN manifests INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repository ADD COLUMN tags INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repository ADD COLUMN untagged INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repository ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0; -- of its blobs
ALTER TABLE repository ADD COLUMN own INTEGER NOT NULL DEFAULT 0; -- of those that no other one has
ALTER TABLE blob DROP COLUMN state;
ALTER TABLE blob DROP COLUMN state_since;
ALTER TABLE blob ADD COLUMN links INTEGER NOT NULL DEFAULT 0;
ALTER TABLE blob ADD COLUMN users INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repo_blob ADD COLUMN refs INTEGER NOT NULL DEFAULT 0;
ALTER TABLE manifest ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
ALTER TABLE manifest ADD COLUMN locks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE manifest ADD COLUMN pulled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE manifest ADD COLUMN platform TEXT; -- null: not looked for yet
ALTER TABLE tag ADD COLUMN locks INTEGER NOT NULL DEFAULT 0;
CREATE TABLE retired_tag (repo INTEGER NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (repo, name)) WITHOUT ROWID;
CREATE TABLE doomed (key TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE total (blobs INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE INDEX repo_blob_unreferred ON repo_blob (touched) WHERE refs = 0;
CREATE UNIQUE INDEX blob_by_key ON blob (key) WHERE key IS NOT NULL;
CREATE INDEX blob_unlinked ON blob (id) WHERE links = 0;
CREATE INDEX manifest_untagged ON manifest (repo, touched) WHERE held = 0 AND subject IS NULL;

UPDATE repository SET internal = 1 WHERE name GLOB '` + reserved + `*';
UPDATE repo_blob SET refs = ` + countRefs + `;
UPDATE blob SET links = ` + countLinks + `, users = ` + countUsers + `;
UPDATE manifest SET held = ` + countHeld + `;
UPDATE repository SET manifests = ` + countManifests + `, tags = ` + countTags + `, untagged = ` + countUntagged + `,
	bytes = ` + countBytes + `, own = ` + countOwn + `;
INSERT INTO total (blobs, bytes) SELECT count(*), coalesce(sum(size), 0) FROM blob;

CREATE TRIGGER blob_added AFTER INSERT ON blob BEGIN
	UPDATE total SET blobs = blobs + 1, bytes = bytes + NEW.size;
END;
CREATE TRIGGER blob_removed AFTER DELETE ON blob BEGIN
	UPDATE total SET blobs = blobs - 1, bytes = bytes - OLD.size;
END;
CREATE TRIGGER link_added AFTER INSERT ON repo_blob BEGIN
	UPDATE blob SET links = links + 1, users = users + (SELECT 1 - internal FROM repository WHERE id = NEW.repo) WHERE id = NEW.blob;
	UPDATE repository SET bytes = bytes + (SELECT size FROM blob WHERE id = NEW.blob),
		own = own + CASE internal WHEN 0 THEN (SELECT CASE users WHEN 1 THEN size ELSE 0 END FROM blob WHERE id = NEW.blob) ELSE 0 END
		WHERE id = NEW.repo;
	UPDATE repository SET own = own - (SELECT size FROM blob WHERE id = NEW.blob)
		WHERE (SELECT users FROM blob WHERE id = NEW.blob) = 2 AND (SELECT internal FROM repository WHERE id = NEW.repo) = 0
		AND internal = 0 AND id IN (SELECT repo FROM repo_blob WHERE blob = NEW.blob AND repo <> NEW.repo);
END;
CREATE TRIGGER link_removed AFTER DELETE ON repo_blob BEGIN
	UPDATE repository SET bytes = bytes - (SELECT size FROM blob WHERE id = OLD.blob),
		own = own - CASE internal WHEN 0 THEN (SELECT CASE users WHEN 1 THEN size ELSE 0 END FROM blob WHERE id = OLD.blob) ELSE 0 END
		WHERE id = OLD.repo;
	UPDATE blob SET links = links - 1, users = users - (SELECT 1 - internal FROM repository WHERE id = OLD.repo) WHERE id = OLD.blob;
	UPDATE repository SET own = own + (SELECT size FROM blob WHERE id = OLD.blob)
		WHERE (SELECT users FROM blob WHERE id = OLD.blob) = 1 AND (SELECT internal FROM repository WHERE id = OLD.repo) = 0
		AND internal = 0 AND id IN (SELECT repo FROM repo_blob WHERE blob = OLD.blob);
END;
CREATE TRIGGER reference_added AFTER INSERT ON manifest_blob BEGIN
	UPDATE repo_blob SET refs = refs + 1 WHERE repo = (SELECT repo FROM manifest WHERE id = NEW.manifest) AND blob = NEW.blob;
END;
CREATE TRIGGER reference_removed AFTER DELETE ON manifest_blob BEGIN
	UPDATE repo_blob SET refs = refs - 1 WHERE repo = (SELECT repo FROM manifest WHERE id = OLD.manifest) AND blob = OLD.blob;
END;
CREATE TRIGGER child_added AFTER INSERT ON manifest_child BEGIN
	UPDATE manifest SET held = held + 1 WHERE repo = (SELECT repo FROM manifest WHERE id = NEW.manifest) AND digest = NEW.child;
END;
CREATE TRIGGER child_removed AFTER DELETE ON manifest_child BEGIN
	UPDATE manifest SET held = held - 1 WHERE repo = (SELECT repo FROM manifest WHERE id = OLD.manifest) AND digest = OLD.child;
END;
CREATE TRIGGER tag_added AFTER INSERT ON tag BEGIN
	UPDATE manifest SET held = held + 1 WHERE id = NEW.manifest;
	UPDATE repository SET tags = tags + 1 WHERE id = NEW.repo;
END;
CREATE TRIGGER tag_moved AFTER UPDATE OF manifest ON tag WHEN OLD.manifest <> NEW.manifest BEGIN
	UPDATE manifest SET held = held - 1, touched = max(touched, NEW.updated) WHERE id = OLD.manifest;
	UPDATE manifest SET held = held + 1 WHERE id = NEW.manifest;
END;
CREATE TRIGGER tag_removed AFTER DELETE ON tag BEGIN
	UPDATE manifest SET held = held - 1 WHERE id = OLD.manifest;
	UPDATE repository SET tags = tags - 1 WHERE id = OLD.repo;
END;
CREATE TRIGGER manifest_added AFTER INSERT ON manifest BEGIN
	UPDATE repository SET manifests = manifests + 1, untagged = untagged + (NEW.held = 0 AND NEW.subject IS NULL) WHERE id = NEW.repo;
END;
CREATE TRIGGER manifest_removed AFTER DELETE ON manifest BEGIN
	UPDATE repository SET manifests = manifests - 1, untagged = untagged - (OLD.held = 0 AND OLD.subject IS NULL) WHERE id = OLD.repo;
END;
CREATE TRIGGER manifest_held AFTER UPDATE OF held ON manifest WHEN NEW.subject IS NULL AND (OLD.held = 0) <> (NEW.held = 0) BEGIN
	UPDATE repository SET untagged = untagged + (NEW.held = 0) - (OLD.held = 0) WHERE id = NEW.repo;
END;
`

// schemaV3 finds what is locked in a repository without looking at all that is in it.
const schemaV3 = `
CREATE INDEX manifest_locked ON manifest (repo, locks) WHERE locks <> 0;
CREATE INDEX tag_locked ON tag (repo, locks) WHERE locks <> 0;
`

// schemaV4 remembers what each run that goes on has published: the tags of a publication, hashed, and its result.
const schemaV4 = `
CREATE TABLE publication (
	run TEXT NOT NULL,
	step TEXT NOT NULL,
	tags TEXT NOT NULL,
	attempt INTEGER NOT NULL,
	result TEXT NOT NULL,
	PRIMARY KEY (run, step, tags)) WITHOUT ROWID;
`

// What the counts count, as expressions over a row of their table.
const (
	countRefs  = `(SELECT count(*) FROM manifest_blob e JOIN manifest m ON m.id = e.manifest WHERE e.blob = repo_blob.blob AND m.repo = repo_blob.repo)`
	countLinks = `(SELECT count(*) FROM repo_blob l WHERE l.blob = blob.id)`
	countUsers = `(SELECT count(*) FROM repo_blob l JOIN repository r ON r.id = l.repo WHERE l.blob = blob.id AND r.internal = 0)`
	countHeld  = `(SELECT count(*) FROM tag t WHERE t.manifest = manifest.id) + (SELECT count(*) FROM manifest_child c
		JOIN manifest i ON i.id = c.manifest WHERE c.child = manifest.digest AND i.repo = manifest.repo)`
	countManifests = `(SELECT count(*) FROM manifest m WHERE m.repo = repository.id)`
	countTags      = `(SELECT count(*) FROM tag t WHERE t.repo = repository.id)`
	countUntagged  = `(SELECT count(*) FROM manifest m WHERE m.repo = repository.id AND m.held = 0 AND m.subject IS NULL)`
	countBytes     = `(SELECT coalesce(sum(b.size), 0) FROM repo_blob l JOIN blob b ON b.id = l.blob WHERE l.repo = repository.id)`
	countOwn       = `(SELECT coalesce(sum(b.size), 0) FROM repo_blob l JOIN blob b ON b.id = l.blob
		WHERE l.repo = repository.id AND b.users = 1 AND repository.internal = 0)`
)
