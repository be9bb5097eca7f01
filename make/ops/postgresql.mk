# PostgreSQL backup and recovery: the targets of the operations guide, each by pgrecall.
#
#     make -f make/ops/postgresql.mk help
#
# Which server, and where things are kept, stands in pgrecall.toml (PGRECALL_CONFIG names it).
# Variables reach pgrecall by the environment, never as words of a shell: any value is safe.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# How pgrecall is called; words for the shell, for example: pgrecall --server shop
PGRECALL ?= pgrecall

VARIABLES := POSTGRES_DB FORMAT BACKUP_ROOT BACKUP_DIR FILE BACKUP_FILE S3_BUCKET \
	BASE_BACKUP WAL_ARCHIVE TARGET_TIME TARGET_DIR PRIMARY_URL PASSPHRASE PLAIN_SECRETS DRY_RUN

# As they were given: make would expand a dollar sign in them.
$(foreach name,$(VARIABLES),$(eval override $(name) := $$(value $(name))))
export $(VARIABLES)

ifneq ($(filter-out help,$(MAKECMDGOALS)),)
ifneq ($(strip $(value NAMESPACE)$(value POD_NAME)$(value PRIMARY_POD)),)
$(error NAMESPACE, POD_NAME and PRIMARY_POD need the Kubernetes support, which this version of \
	pgrecall does not have: run where the server can be reached, and name it in pgrecall.toml)
endif
endif

GUIDED := pg-backup-config pg-backup pg-backup-all pg-backup-wal pg-backup-full pg-basebackup \
	pg-backup-verify
.PHONY: help $(GUIDED) pg-backup-pvc-snapshot pg-archive-status \
	pg-replication-status pg-restore pg-restore-full pg-pitr pg-drill pg-doctor pg-rebuild-replica \
	pg-promote-replica pg-expire

help: ## Show the targets.
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z-]*:.*## / { printf "%-24s %s\n", $$1, $$2 }' \
		'$(firstword $(MAKEFILE_LIST))'

# --- back up ---------------------------------------------------------------------

pg-backup-config: ## Capture the configuration; files under BACKUP_ROOT/config.
pg-backup: ## Dump POSTGRES_DB (postgres) in FORMAT (custom, plain, tar, directory).
pg-backup-all: ## Dump everything as one script: dumps/cluster-TIMESTAMP.sql.
pg-backup-wal: ## Finish a segment; WAL since the newest backup: wal/wal-archive-TIMESTAMP.tar.gz.
pg-basebackup: ## Back the server up; basebackup/basebackup-TIMESTAMP.tar.gz.
pg-backup-full: ## Everything of one moment: full/postgresql-backup-TIMESTAMP.tar.gz, and S3_BUCKET.
pg-backup-verify: ## Prove the plain files in BACKUP_DIR.
$(GUIDED):
	@$(PGRECALL) guide $@

pg-backup-pvc-snapshot: ## A snapshot of the volume (in Kubernetes only).
	@echo 'pg-backup-pvc-snapshot needs Kubernetes, which this version of pgrecall does not' \
		'support; pg-basebackup copies the data directory.' >&2; exit 1

# --- look ------------------------------------------------------------------------

pg-archive-status: ## What is archived, what waits, what fails.
	@$(PGRECALL) wal status

pg-replication-status: ## Standbys and slots, and how far each is behind.
	@$(PGRECALL) replication status

pg-doctor: ## Name what is wrong, and what to type.
	@$(PGRECALL) doctor

pg-drill: ## Restore a random moment into a throwaway server, and prove it good.
	@$(PGRECALL) drill --at random

# --- bring back ------------------------------------------------------------------

pg-restore: ## Load FILE (or BACKUP_FILE) into POSTGRES_DB, a new database.
	@: "$${FILE:=$$BACKUP_FILE}"; \
		[ -n "$$FILE" ] || { echo 'say which: make pg-restore FILE=/path POSTGRES_DB=name' >&2; exit 2; }; \
		[ -n "$$POSTGRES_DB" ] || { echo 'say where to: POSTGRES_DB=name' >&2; exit 2; }; \
		$(PGRECALL) load --into "$$POSTGRES_DB" --create --yes -- "$$FILE"

pg-restore-full: ## Bring the set BACKUP_DIR (its id, see pgrecall sets list) back, in TARGET_DIR.
	@[ -n "$$BACKUP_DIR" ] && [ -n "$$TARGET_DIR" ] || \
		{ echo 'say which and where to: BACKUP_DIR=s-... TARGET_DIR=/data' >&2; exit 2; }; \
		case "$$BACKUP_DIR" in */*) \
			echo 'a directory or archive is brought back by the commands in its RESTORE.md:' \
				'sets restored here are named by their id (pgrecall sets list)' >&2; exit 2;; esac; \
		$(PGRECALL) set restore --yes --target-dir "$$TARGET_DIR" -- "$$BACKUP_DIR"

pg-pitr: ## Restore the moment TARGET_TIME (with its zone) in TARGET_DIR, and start it.
	@[ -z "$$BASE_BACKUP" ] || \
		{ echo 'BASE_BACKUP: this version of pgrecall imports WAL only; without it a backup of' \
			'the catalog is used.' >&2; exit 1; }; \
		[ -n "$$TARGET_TIME" ] && [ -n "$$TARGET_DIR" ] || \
		{ echo 'say when and where to: TARGET_TIME="2026-11-22 20:16:37+00" TARGET_DIR=/data' >&2; exit 2; }; \
		[ -z "$$WAL_ARCHIVE" ] || $(PGRECALL) import --yes -- "$$WAL_ARCHIVE" || exit; \
		$(PGRECALL) restore --to-time "$$TARGET_TIME" --target-dir "$$TARGET_DIR" --start

# --- standbys --------------------------------------------------------------------

pg-rebuild-replica: ## Build a standby of PRIMARY_URL in TARGET_DIR from the repository.
	@[ -n "$$PRIMARY_URL" ] && [ -n "$$TARGET_DIR" ] || \
		{ echo 'say of whom and where: PRIMARY_URL=postgresql://host TARGET_DIR=/data' >&2; exit 2; }; \
		$(PGRECALL) standby build --primary "$$PRIMARY_URL" --target-dir "$$TARGET_DIR"

pg-promote-replica: ## Make the standby in TARGET_DIR a primary.
	@$(PGRECALL) standby promote --target-dir "$$TARGET_DIR"

# --- keep ------------------------------------------------------------------------

pg-expire: ## Let go what the policy does not keep (DRY_RUN=yes shows it only).
	@if [ "$$DRY_RUN" = yes ]; then $(PGRECALL) expire --dry-run; else $(PGRECALL) expire --yes; fi
