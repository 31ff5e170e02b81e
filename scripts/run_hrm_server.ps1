# Serves an HRM on Windows, from any directory: installs missing packages, then runs `aios serve hrm` with the flags of
# this script.
#   scripts\run_hrm_server.ps1 --redis-url redis://127.0.0.1:6379/0 --port 8000 --model-path path\to\model
#
# Windows has no embedded Redis (its wheels are for Linux and macOS): name one with --redis-url or AIOS_REDIS_URL, or run
# scripts/run_hrm_server.sh in WSL2.
$ErrorActionPreference = 'Stop'

$root = Split-Path -Parent $PSScriptRoot
$venv = Join-Path $root '.venv'
$venvPython = Join-Path $venv 'Scripts\python.exe'
$aios = Join-Path $venv 'Scripts\aios.exe'

function Stop-WithMessage([string] $Message) {
    [Console]::Error.WriteLine("run_hrm_server: $Message")
    exit 1
}

function Invoke-Checked([string] $Command, [string[]] $Arguments) {
    & $Command @Arguments
    if ($LASTEXITCODE -ne 0) { Stop-WithMessage "$Command $($Arguments -join ' ') failed with status $LASTEXITCODE" }
}

function Find-Python {
    $candidates = @(@('py', '-3.12'), @('py', '-3.11'), @('python'), @('python3'), @('py', '-3'))
    foreach ($candidate in $candidates) {
        if (-not (Get-Command $candidate[0] -ErrorAction SilentlyContinue)) { continue }
        $prefix = @($candidate | Select-Object -Skip 1)
        try { & $candidate[0] @prefix -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>$null } catch { continue }
        if ($LASTEXITCODE -eq 0) { return , $candidate }
    }
    Stop-WithMessage 'no Python 3.11 or newer found; install one from https://www.python.org/downloads/windows/'
}

$namesRedis = $env:AIOS_REDIS_URL -or ($args | Where-Object { "$_" -match '^--redis[-_]url(=|$)' })
$needsNoRedis = $args | Where-Object { "$_" -in @('--help', '-h', '--print-config', '--print_config', '--dry-run', '--dry_run') }
if (-not $namesRedis -and -not $needsNoRedis) {
    Stop-WithMessage 'no Redis named: Windows has no embedded one. Pass --redis-url, set AIOS_REDIS_URL, or use WSL2.'
}

# A second start takes seconds: the stamp holds the hashes of the files that list the installed packages.
$pins = @('pyproject.toml', 'constraints.txt') | ForEach-Object { (Get-FileHash (Join-Path $root $_) -Algorithm SHA256).Hash }
$wanted = $pins -join ' '
$extra = if ($args -contains '--ui') { 'all,ui' } else { 'all' }
$stamp = Join-Path $venv ".aios-stamp-$($extra.Split(',')[-1])"
$installed = if (Test-Path $stamp) { (Get-Content $stamp -Raw).Trim() } else { '' }
if (-not (Test-Path $aios) -or $installed -ne $wanted) {
    if (-not (Test-Path $venvPython)) {
        $python = Find-Python
        $prefix = @($python | Select-Object -Skip 1)
        Invoke-Checked $python[0] ($prefix + @('-m', 'venv', $venv))
    }
    $pip = @('-m', 'pip', '--disable-pip-version-check', 'install', '--quiet', '-c', (Join-Path $root 'constraints.txt'))
    # torch alone and first, by exact version: a range may pull gigabytes of CUDA packages
    Invoke-Checked $venvPython ($pip + @('torch==2.13.0'))
    Invoke-Checked $venvPython ($pip + @('-e', "${root}[$extra]"))
    Set-Content -Path $stamp -Value $wanted
}

& $aios serve hrm @args
exit $LASTEXITCODE
